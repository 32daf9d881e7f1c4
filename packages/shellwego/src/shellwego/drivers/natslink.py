"""One connection to a NATS server, for drivers that need one: over TLS or not at all, with a signed pass, for one life."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoServersError

from shellwego.core.nkeys import NKey

PREFIX = "swg."
"""Before each subject of a hint, on the bus alone."""
CONNECT_S = 5.0
_PING_S, _PINGS = 5, 2
_CLOSE_S = 0.5
TROUBLE = (NatsError, OSError, TimeoutError)
"""What a server that is away, or does not let us in, looks like."""


@dataclass(frozen=True, slots=True)
class Login:
    """A pass and the key that it was signed for."""

    token: str
    key: NKey


async def _ignore(_: Exception) -> None:
    """The end of a connection is seen by who uses it."""


async def _nothing() -> None:
    pass


async def connect(
    url: str,
    certificate: str,
    login: Login,
    *,
    noted: Callable[[Exception], Awaitable[None]] = _ignore,
    closed: Callable[[], Awaitable[None]] = _nothing,
) -> Client:
    """A connection that is not made again when it ends. `certificate` is the PEM that the server is known by; empty: by this
    host's authorities.

    Raises:
        one of `TROUBLE`.
    """
    client, why = Client(), list[Exception]()

    async def note(error: Exception) -> None:
        why.append(error)
        del why[:-1]
        await noted(error)

    def sign(nonce: str) -> bytes:
        _insist_on_tls(client)
        return base64.b64encode(login.key.sign(nonce.encode()))

    try:
        await client.connect(
            servers=[url],
            name="shellwego",
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=int(CONNECT_S),
            ping_interval=_PING_S,
            max_outstanding_pings=_PINGS,
            tls=_tls(certificate),
            user_jwt_cb=login.token.encode,
            signature_cb=sign,
            error_cb=note,
            closed_cb=closed,
        )
        _insist_on_tls(client)  # nothing was signed for a server that asks for no login
    except NoServersError:  # which is the end of the list, and says nothing of why
        await close(client)
        raise NatsError(f"{url}: {why[-1] if why else 'no answer'}") from None
    except BaseException:
        await close(client)
        raise
    return client


async def settle(client: Client) -> None:
    """Return when the server knows all that was said to it, subscriptions above all.

    nats-py writes a PING before what it has queued; so the answer to a first one says nothing, but by then the queue is out.
    """
    for _ in range(2):
        await client.flush(timeout=int(CONNECT_S))


async def close(client: Client) -> None:
    """End a connection, without waiting for long for a server that does not say goodbye."""
    with suppress(Exception):  # whatever state it is in, it is left
        async with asyncio.timeout(_CLOSE_S):
            await client.close()


def _insist_on_tls(client: Client) -> None:
    """nats-py leaves it to the server, and so to whoever stands between, whether TLS is used."""
    if not client._server_info.get("tls_required"):
        raise NatsError("nats: the server asks for no TLS")


def _tls(certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=certificate or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
