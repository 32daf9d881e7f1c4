"""Drivers of `ports.streams`: memory, for everything in one process."""
