"""Drivers of `ports.bus`: memory, for everything in one process."""
