"""A store that does not answer for a while, as a database that is restarted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from shellwego.core.errors import UnavailableError
from shellwego.ports.store import Store, Transaction

T = TypeVar("T")


class AwayStore:
    """Any store; while it is `away` nothing is answered, and what was asked for is counted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.unanswered = 0

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        self._answer()
        return await self._store.transact(fn)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        self._answer()
        return await self._store.read(fn)

    async def close(self) -> None:
        await self._store.close()

    def _answer(self) -> None:
        if self.away:
            self.unanswered += 1
            raise UnavailableError("store-away", "the database does not answer")
