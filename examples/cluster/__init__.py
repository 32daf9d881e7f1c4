"""A platform of three hosts on one machine; see `scripts/cluster-demo`."""
