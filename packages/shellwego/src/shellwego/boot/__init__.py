"""Joins drivers to ports, and starts what runs: `swg up`, and the parts for several hosts: server, agent, edge."""
