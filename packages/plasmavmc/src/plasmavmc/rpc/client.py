"""A client of the engine's gRPC services, in the engine's own types.

    async with connect("unix:/run/plasmavmc/plasmavmc.sock") as engine:
        vm = await engine.vms.create(spec, start=True)

Errors come back as what they were on the server (`PlasmaError` and its kinds, with code, brief and resolution); a server
that does not answer is an `UnavailableError`. Environment and files of a VM never come back.

Each write carries a request id of its own, so that a repetition by the transport does nothing twice; give `request_id`
to repeat one yourself.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from plasmavmc.errors import ForbiddenError, HostError, InvalidSpecError, UnavailableError
from plasmavmc.rpc.clients.calls import Metadata, translated
from plasmavmc.rpc.clients.images import ImageClient
from plasmavmc.rpc.clients.nodes import NodeClient
from plasmavmc.rpc.clients.vms import VmClient
from plasmavmc.types import MIB

MAX_ANSWER = 16 * MIB
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_ANSWER),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


@dataclass(frozen=True, slots=True)
class ClientTls:
    """The authority that the server's certificate is from, and for mutual TLS our certificate and key. PEM files."""

    certificate: Path | None
    key: Path | None
    authority: Path
    server_name: str = ""
    """Where the certificate names another host than the address does."""


@asynccontextmanager
async def connect(
    address: str, *, token: str = "", tls: ClientTls | None = None, timeout_s: float = 10.0
) -> AsyncIterator[EngineClient]:
    """A connection to `unix:PATH`, or to `host:port` with `tls`; without it only to this machine's loopback, and with a
    token. The server has answered when it is given out.

    Raises:
        InvalidSpecError: `address`, it is neither; `tls.authority` or `tls.certificate`, the file is not what it should be.
        UnavailableError: nobody answers there within `timeout_s`.
        ForbiddenError: the socket is not ours to open.
        HostError: a file of `tls` cannot be read.
    """
    async with _channel(address, tls, clear=bool(token)) as channel:
        with translated():
            await cast("Any", HealthStub(channel)).Check(HealthCheckRequest(), timeout=timeout_s)
        yield EngineClient(channel, (("authorization", f"Bearer {token}"),) if token else ())


def _channel(address: str, tls: ClientTls | None, *, clear: bool) -> grpc.aio.Channel:
    path = address.removeprefix("unix:")
    if path != address:
        _check_socket(Path(path))
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidSpecError("address", f"{address[:100]!r} is neither unix:PATH nor host:port")
    if tls is None and clear and host in _LOOPBACK:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    if tls is None:
        words = "a server is reached over TCP with certificates only, or with a token on this machine"
        raise InvalidSpecError("address", words)
    named = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
    return grpc.aio.secure_channel(address, _credentials(tls), options=(*_OPTIONS, *named))


def _check_socket(path: Path) -> None:
    """gRPC would only say that it could not connect."""
    if not path.exists():
        raise UnavailableError(
            "server-unreachable", f"there is no socket {path}", resolution="Start the server: plasmavmc serve"
        )
    if not os.access(path, os.W_OK):
        raise ForbiddenError(
            "socket-forbidden",
            f"you may not open the socket {path}",
            resolution="Ask for an entry in the server's policy, or run as root.",
        )


def _credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    try:
        authority = tls.authority.read_bytes()
        own = [path.read_bytes() for path in (tls.key, tls.certificate) if path is not None]
    except OSError as error:
        raise HostError("tls-files", f"{error.filename} cannot be read: {error.strerror}") from error
    _check_pem(tls, authority)
    return grpc.ssl_channel_credentials(authority, *own)


def _check_pem(tls: ClientTls, authority: bytes) -> None:
    """gRPC would log lines of its own, and then only say that it could not connect."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # whether they are PEM is asked here, and not whether they are strong
    try:
        context.load_verify_locations(cadata=authority.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise InvalidSpecError("tls.authority", f"{tls.authority} holds no certificate (PEM)") from error
    if tls.certificate is None:
        return
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        words = f"{tls.certificate} is no certificate with its own, unencrypted key {tls.key} (PEM)"
        raise InvalidSpecError("tls.certificate", words) from error


def _no_password() -> str:
    """In place of OpenSSL's own question on the terminal."""
    return ""


class EngineClient:
    """What `connect` gives out."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata = ()) -> None:
        self.vms = VmClient(channel, metadata)
        self.images = ImageClient(channel, metadata)
        self.nodes = NodeClient(channel, metadata)
