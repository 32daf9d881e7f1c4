"""Who calls: by the key of his certificate, which must stand here now; and how often he may.

Who holds a key is asked at each call, and again and again while a link is open, so that a key that was retired is shut out
within a second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv6Address, IPv6Network

from shellwego.api.ratelimit import RateLimiter
from shellwego.core.errors import ForbiddenError, ShellWeGoError, ThrottledError
from shellwego.core.nodecallers import Caller, Identify
from shellwego.core.plans import Rate
from shellwego.ports.clock import Clock
from shellwego.wire.tls import Peer

LOOK_S = 0.4
"""Between two looks at the key of an open link."""
RATE = Rate(per_minute=12_000, burst=1_000)
STRANGERS_RATE = Rate(per_minute=300, burst=50)
"""Of one origin."""
BYTES_RATE = Rate(per_minute=60 << 20, burst=32 << 20)
"""Of the bodies of one key: what they cost is by their size, and while one is read nobody else is heard."""
MAX_AT_ONCE = 32
"""Calls of one node or edge."""


class Callers:
    """The callers of one server."""

    def __init__(self, identify: Identify, clock: Clock, rate: Rate = RATE, bytes_rate: Rate = BYTES_RATE) -> None:
        self._identify = identify
        self._clock = clock
        self._rate = rate
        self._bytes_rate = bytes_rate
        self._limiter = RateLimiter()
        self._busy: Counter[str] = Counter()

    async def caller(self, peer: Peer) -> Caller:
        """Whose key it is. Says nothing of the certificate: that of an open link is as old as the link.

        Raises:
            ForbiddenError: nobody's, any more or at all; or the certificate has ended.
            UnavailableError: that cannot be known now.
        """
        self._check_term(peer)
        return await self._identify(peer.key, "")

    @asynccontextmanager
    async def call(self, peer: Peer) -> AsyncIterator[Caller]:
        """Whose call it is; counted while it lasts. What certificate it came with is taken note of.

        Raises:
            ThrottledError: this key calls too often, or too much at once.
            ForbiddenError, UnavailableError: as `caller`.
        """
        with self._counted(peer):
            self._check_term(peer)
            yield await self._identify(peer.key, peer.authority_id)

    @contextmanager
    def fellow(self, peer: Peer) -> Iterator[None]:
        """A call of another server; counted while it lasts.

        Raises:
            ThrottledError: this key calls too often, or too much at once.
            ForbiddenError: it is none, or its certificate has ended.
        """
        with self._counted(peer):
            if not peer.server:
                raise ForbiddenError("uplink-not-a-server", "only a server of this platform may have this")
            self._check_term(peer)
            yield

    @contextmanager
    def _counted(self, peer: Peer) -> Iterator[None]:
        self._count(peer.key, self._rate)
        if self._busy[peer.key] >= MAX_AT_ONCE:
            raise _too_often(f"{MAX_AT_ONCE} calls of this key are under way", 1)
        self._busy[peer.key] += 1
        try:
            yield
        finally:
            self._busy[peer.key] -= 1
            if not self._busy[peer.key]:
                del self._busy[peer.key]

    def _check_term(self, peer: Peer) -> None:
        if self._clock.now() >= peer.expires_at:
            raise ForbiddenError(
                "node-certificate-expired",
                "the certificate of this node has expired",
                resolution="Join it again, with a new token (swg nodes join-token).",
            )

    def count_stranger(self, address: str) -> None:
        """Count a request of somebody who shows no certificate; raises `ThrottledError`."""
        self._count(origin_of(address), STRANGERS_RATE)

    def count_body(self, peer: Peer, length: int) -> None:
        """Count a body before it is read; raises `ThrottledError`."""
        verdict = self._limiter.count(f"{peer.key} bytes", self._bytes_rate, self._clock.monotonic(), length)
        if not verdict.allowed:
            raise _too_often(f"more than {self._bytes_rate.per_minute} bytes in a minute", verdict.retry_after_s)

    def count_method(self, peer: Peer, method: str, rate: Rate) -> None:
        """Count a call of a method that has a rate of its own; raises `ThrottledError`."""
        self._count(f"{peer.key} {method}", rate)

    async def until_shut_out(self, peer: Peer, caller: Caller) -> str:
        """Return, with the reason, when the key is not this caller's any more."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if (await self.caller(peer)).id != caller.id:
                    return "its key is another's"
            except ShellWeGoError as error:
                if not error.temporary:
                    return error.message

    def _count(self, key: str, rate: Rate) -> None:
        verdict = self._limiter.count(key, rate, self._clock.monotonic())
        if not verdict.allowed:
            raise _too_often(f"more than {rate.per_minute} calls in a minute", verdict.retry_after_s)


def origin_of(address: str) -> str:
    """What is counted of an address: whoever has one of IPv6 has all of its /64 (RFC 4291, section 2.5.4)."""
    try:
        found = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or IPv6Network((found, 64), strict=False))


def _too_often(words: str, retry_after_s: int) -> ThrottledError:
    return ThrottledError("uplink-too-often", words, resolution="Wait a moment.", retry_after_s=retry_after_s)
