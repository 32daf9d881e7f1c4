"""The call by which this host joins: first it makes sure whom it talks to, then it says who it is.

The token names the platform's authority by its fingerprint. The server shows that authority's certificate in its handshake;
where none has the fingerprint, this side closes the connection and has sent nothing but the handshake. Only over a second
connection, verified by that certificate, goes the token.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from shellwego.core.errors import InvalidError, ShellWeGoError, UnavailableError
from shellwego.core.joins import JoinRequest, Membership
from shellwego.wire import uplink
from shellwego.wire.codec import decode, encode
from shellwego.wire.tls import SERVER_NAME, client_context

T = TypeVar("T")

DEFAULT_PORT = 7081
ANSWER_S = 20.0
_TRIES = 3
_MAX_ANSWER = 256 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server's node port is."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"


def parse_address(url: str) -> Address:
    """`https://host:7081`; the port may be left out.

    Raises:
        InvalidError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORT
        plain = not (parts.username or parts.password or parts.query or parts.fragment) and parts.path in ("", "/")
    except ValueError:
        raise _bad_url(url) from None
    if parts.scheme != "https" or not parts.hostname or not plain:
        raise _bad_url(url)
    return Address(parts.hostname, port)


def find_authority(address: Address, fingerprint: str) -> str:
    """The certificate of the authority with this fingerprint (SHA-256, hex), in PEM, as the server shows it.

    Raises:
        UnavailableError: nobody answers there.
        InvalidError: whoever does is not of that platform. Nothing was sent to him.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with closing(_connect(address, context)) as connection:
        for certificate in _shown(connection):
            if hashlib.sha256(certificate).hexdigest() == fingerprint:
                return ssl.DER_cert_to_PEM_cert(certificate)
    raise InvalidError(
        "wrong-authority",
        f"who answers at {address.url} is not of the platform that gave the token; nothing was sent to him",
        resolution="See that the address is that of the platform's node port, and that nobody stands in between.",
    )


def clock_ahead_s(address: Address, authority: str, now: Callable[[], float] = time.time) -> float:
    """By how much this host's clock is ahead of the server's, in seconds, to within the time of the question; raises as
    `join`."""
    before = now()
    response, _ = _ask(address, authority, "GET", b"")
    told = response.getheader("Date")
    if told is None:
        raise UnavailableError("no-date", f"{address.url} does not tell its time")
    server = parsedate_to_datetime(told).timestamp() + 0.5  # it tells whole seconds
    return (before + now()) / 2 - server


def join(address: Address, authority: str, request: JoinRequest) -> Membership:
    """Ask to be taken in. An answer that is lost is asked for again, which changes nothing.

    Raises:
        UnavailableError: the server does not answer, or is no server of this authority.
        ShellWeGoError: what it refused.
    """
    body, trouble = encode(request), None
    for _ in range(_TRIES):
        try:
            response, content = _ask(address, authority, "POST", body)
        except UnavailableError as error:
            trouble = error
            continue
        if response.status == 200:
            return _parsed(Membership, content, address)
        raise uplink.error_of(_parsed(uplink.Refusal, content, address))
    raise trouble or UnavailableError("uplink-unavailable", f"no answer from {address.url}")


def _ask(address: Address, authority: str, method: str, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=ANSWER_S)
    connection.sock = _connect(address, client_context(authority.encode()))
    headers = {"Content-Type": uplink.MEDIA_TYPE, uplink.PROTOCOL_HEADER: str(uplink.PROTOCOL), "Connection": "close"}
    try:
        with closing(connection):
            connection.request(method, f"{uplink.BASE}{uplink.Method.JOIN}", body=body, headers=headers)
            response = connection.getresponse()
            return response, response.read(_MAX_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(address, error) from None


def _connect(address: Address, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = None
    try:
        plain = socket.create_connection((address.host, address.port), timeout=ANSWER_S)
        return context.wrap_socket(plain, server_hostname=SERVER_NAME)
    except OSError as error:
        if plain is not None:
            plain.close()
        raise _no_answer(address, error) from None


def _shown(connection: Any) -> list[bytes]:
    """The certificates of the handshake, in DER: not verified. Public from Python 3.13 on, before that one level down."""
    public = getattr(connection, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in connection._sslobj.get_unverified_chain() or ()]


def _parsed(kind: type[T], content: bytes, address: Address) -> T:
    try:
        return decode(kind, content)
    except ValueError:
        raise UnavailableError("uplink-nonsense", f"{address.url} answers what is no answer") from None


def _no_answer(address: Address, error: Exception) -> ShellWeGoError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnavailableError(
            "uplink-untrusted",
            f"{address.url} cannot prove to be a server of the platform ({error.verify_message})",
            resolution="See this host's clock first (timedatectl), then the address.",
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return UnavailableError(
        "uplink-unavailable",
        f"no answer from {address.url}: {reason}",
        resolution="Is it the node port (7081), and is it open from here? On the server: --node-listen ADDRESS.",
    )


def _bad_url(url: str) -> InvalidError:
    return InvalidError("bad-url", f"{url!r:.200} is no address of a node port, such as https://cloud.example:7081")
