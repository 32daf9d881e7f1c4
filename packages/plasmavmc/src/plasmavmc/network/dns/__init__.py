"""Names of private networks: the resolver that guests ask, and what keeps it running. See docs/design/names.md."""
