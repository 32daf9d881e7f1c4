"""The network face of the control plane."""
