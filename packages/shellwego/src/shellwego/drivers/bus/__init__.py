"""Drivers of `ports.bus`: memory, for everything in one process; NATS, for several hosts. `listening` is shared by both."""
