"""The engine's gRPC services `plasmavmc.v1` over the protocols of `api`, and a client for them."""
