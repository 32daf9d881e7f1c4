"""Turns at what tenants share: so many at a time in all, and fewer for each of them, so that none keeps the others out."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """`each` at a time for one, `most` for all. Who has to wait for his own others takes no turn of anybody else's."""

    def __init__(self, *, each: int, most: int) -> None:
        self._own: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(each))
        self._all = asyncio.Semaphore(most)
        self._asking: Counter[str] = Counter()

    @asynccontextmanager
    async def taken(self, who: str) -> AsyncIterator[None]:
        """One turn, once it is there; in the order of asking."""
        self._asking[who] += 1
        try:
            async with self._own[who], self._all:
                yield
        finally:
            self._asking[who] -= 1
            if not self._asking[who]:
                del self._asking[who], self._own[who]
