"""The gRPC server over this host's `VmManager`: `plasmavmc serve`."""
