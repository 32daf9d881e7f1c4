"""The reconciler of one node: it brings the host to what the control plane assigned, and tells what it saw."""
