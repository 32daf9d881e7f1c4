"""Drivers of port `objects`."""
