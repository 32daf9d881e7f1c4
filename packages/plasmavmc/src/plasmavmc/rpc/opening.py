"""A gRPC server with our bounds, before it listens anywhere."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from plasmavmc.errors import HostError
from plasmavmc.rpc.gate import Gate
from plasmavmc.types import MIB

MAX_REQUEST = 4 * MIB
MAX_CALLS = 4096
"""At once on one listener, watches and commands included; more are told RESOURCE_EXHAUSTED."""
HANDSHAKE_S = 15.0
"""In which a connection must have begun as HTTP/2, over TLS where there is TLS. gRPC's own is two minutes."""
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST),
    ("grpc.max_send_message_length", 16 * MIB),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
    ("grpc.http2.max_ping_strikes", 4),
    ("grpc.so_reuseport", 0),
)

Enter = Callable[[grpc.aio.Server], None]
"""Adds the servicers to a server."""


def open_server(gate: Gate, enter: Enter) -> grpc.aio.Server:
    """A server behind a gate. It has no listener yet."""
    options = (*_OPTIONS, ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)))
    server = grpc.aio.server(interceptors=(gate,), options=options, maximum_concurrent_rpcs=MAX_CALLS)
    enter(server)
    return server


def bind(server: grpc.aio.Server, address: str, listen: Callable[[str], int]) -> int:
    """Have a server listen, by one of its own methods; returns the port.

    Raises:
        HostError: `port-taken`.
    """
    try:
        return listen(address)
    except RuntimeError as error:
        raise HostError(
            "port-taken", f"cannot listen on {address}", details=str(error)[:300], resolution="Choose another address."
        ) from error


def bind_bearer(server: grpc.aio.Server, address: str, tls: tuple[bytes, bytes] | None) -> int:
    """Have a server listen for callers who are known by tokens alone; raises as `bind`.

    `tls` is (private key, certificate), in PEM; without it all is in clear, so the address must be a loopback's.
    """
    if tls is None:
        return bind(server, address, server.add_insecure_port)
    credentials = grpc.ssl_server_credentials([tls])
    return bind(server, address, lambda each: server.add_secure_port(each, credentials))
