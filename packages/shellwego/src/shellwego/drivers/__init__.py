"""Drivers of the ports; only `boot` imports them."""
