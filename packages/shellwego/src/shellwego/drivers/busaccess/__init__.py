"""Drivers of the port that says who may listen to which hints."""
