"""Drivers of `ports.sealer`: memory, and a key in a file beside the database."""
