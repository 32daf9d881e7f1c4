"""One listener of a bus: a bounded queue, in which the newest hints are kept."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from shellwego.ports.bus import Hint

QUEUE_LIMIT = 1024
"""Hints kept for one listener."""


class Listener:
    """Who falls behind loses the oldest."""

    def __init__(self, pattern: str, limit: int = QUEUE_LIMIT) -> None:
        self.pattern = pattern
        self._hints: deque[Hint] = deque(maxlen=limit)
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, hint: Hint) -> None:
        """Queue one; never waits."""
        self._hints.append(hint)
        self._arrived.set()

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._arrived.set()

    async def hints(self) -> AsyncIterator[Hint]:
        """As they come, until `close`."""
        while True:
            while self._hints:
                yield self._hints.popleft()
            if self._closed:
                return
            self._arrived.clear()
            await self._arrived.wait()
