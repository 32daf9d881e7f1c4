"""Drivers of the port `sealing`."""
