"""Places that tenants share, and wait for: `core.turns` says whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shellwego.core.turns import Turns


class Places:
    """`places` in all, of which one owner has at most `share`. Those who wait for their turn sleep until they have it."""

    def __init__(self, places: int, share: int) -> None:
        self._turns: Turns[asyncio.Event] = Turns(places, share)

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """A place, once it is the owner's turn."""
        begun = asyncio.Event()
        self._turns.ask(owner, begun)
        try:
            self._wake()
            await begun.wait()
            yield
        finally:
            if begun.is_set():
                self._turns.end(owner)
                self._wake()
            else:
                self._turns.withdraw(owner, begun)

    def _wake(self) -> None:
        while (begun := self._turns.take()) is not None:
            begun.set()
