"""Drivers of the port `passwords`."""
