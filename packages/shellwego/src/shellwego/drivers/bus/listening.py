"""One listener of a bus: a bounded queue, in which the newest hints are kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

from shellwego.ports.bus import Hint

QUEUE_LIMIT = 1024
"""Hints kept for one listener."""


class Listener:
    """Who falls behind loses the oldest. One that waits to be heard stands for all equal ones that come meanwhile."""

    def __init__(self, pattern: str, limit: int = QUEUE_LIMIT) -> None:
        self.pattern = pattern
        self._limit = limit
        self._hints: OrderedDict[Hint, None] = OrderedDict()
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, hint: Hint) -> None:
        """Queue one; never waits."""
        if hint in self._hints:
            return
        if len(self._hints) >= self._limit:
            self._hints.popitem(last=False)
        self._hints[hint] = None
        self._arrived.set()

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._arrived.set()

    async def hints(self) -> AsyncIterator[Hint]:
        """As they come, until `close`."""
        while True:
            while self._hints:
                yield self._hints.popitem(last=False)[0]
            if self._closed:
                return
            self._arrived.clear()
            await self._arrived.wait()
