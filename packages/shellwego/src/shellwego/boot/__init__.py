"""Joins drivers to ports, and starts what runs: `swg up`, and (as they come) the parts for several hosts."""
