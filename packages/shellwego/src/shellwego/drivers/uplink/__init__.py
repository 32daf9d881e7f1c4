"""Drivers of `ports.uplink`: memory, for everything in one process."""
