"""The control plane: use cases (one module per resource) and loops. Speaks to the world through ports only."""
