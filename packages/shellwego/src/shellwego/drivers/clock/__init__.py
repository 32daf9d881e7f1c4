"""Drivers of `ports.clock`: the system's clock, and virtual time."""
