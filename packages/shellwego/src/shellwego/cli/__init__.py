"""The command line; it speaks only to `client`."""
