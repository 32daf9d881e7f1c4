"""Drivers of the port `images`: `plasmavmc` (registries, tars, blobs on disk) and `memory`."""
