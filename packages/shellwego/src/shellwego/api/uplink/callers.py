"""Who calls: by the key of his certificate, which must stand here now; and how often he may.

Who holds a key is asked at each call, and again and again while a link is open, so that a key that was retired is shut out
within a second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
"""Of one address."""
MAX_AT_ONCE = 32
"""Calls of one node or edge."""


class Callers:
    """The callers of one server."""

    def __init__(self, identify: Identify, clock: Clock, rate: Rate = RATE) -> None:
        self._identify = identify
        self._clock = clock
        self._rate = rate
        self._limiter = RateLimiter()
        self._busy: Counter[str] = Counter()

    async def caller(self, peer: Peer) -> Caller:
        """Whose key it is.

        Raises:
            ForbiddenError: nobody's, any more or at all; or the certificate has ended.
            UnavailableError: that cannot be known now.
        """
        if self._clock.now() >= peer.expires_at:
            raise ForbiddenError(
                "node-certificate-expired",
                "the certificate of this node has expired",
                resolution="Join it again, with a new token (swg nodes join-token).",
            )
        return await self._identify(peer.key)

    @asynccontextmanager
    async def call(self, peer: Peer) -> AsyncIterator[Caller]:
        """Whose call it is; counted while it lasts.

        Raises:
            ThrottledError: this key calls too often, or too much at once.
            ForbiddenError, UnavailableError: as `caller`.
        """
        self._count(peer.key, self._rate)
        if self._busy[peer.key] >= MAX_AT_ONCE:
            raise _too_often(f"{MAX_AT_ONCE} calls of this key are under way", 1)
        self._busy[peer.key] += 1
        try:
            yield await self.caller(peer)
        finally:
            self._busy[peer.key] -= 1
            if not self._busy[peer.key]:
                del self._busy[peer.key]

    def count_stranger(self, address: str) -> None:
        """Count a call of somebody who shows no certificate; raises `ThrottledError`."""
        self._count(address, STRANGERS_RATE)

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


def _too_often(words: str, retry_after_s: int) -> ThrottledError:
    return ThrottledError("uplink-too-often", words, resolution="Wait a moment.", retry_after_s=retry_after_s)
