"""Drivers of `ports.webhooks`: memory, and HTTP over the network."""
