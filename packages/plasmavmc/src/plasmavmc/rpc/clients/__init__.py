"""The clients of the engine's services, one a service; `rpc.client` connects them."""
