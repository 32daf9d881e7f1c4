"""The node port: where nodes and edges on other hosts call the control plane, and keep a link to it."""
