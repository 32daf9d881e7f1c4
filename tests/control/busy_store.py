"""A store that many write to, as PostgreSQL under load: a question takes time, and who meets another commit runs again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shellwego.core.errors import UnavailableError
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.ports.store import Store, Transaction

T = TypeVar("T")
QUESTION_S = 0.003
RETRIES = 10


class _Asked:
    """Counts what is asked of whatever it stands for."""

    def __init__(self, real: Any, count: Callable[[], None]) -> None:
        self._real, self._count = real, count

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return _Asked(found, self._count)
        self._count()
        return found


@dataclass(slots=True)
class BusyStore:
    """One server's way to `store`, on virtual time. A transaction that others committed beside runs again, then alone: it
    keeps all others of this server waiting."""

    store: Store
    clock: VirtualClock
    commits: int = 0
    _alone: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        async with self._alone:
            pass
        if await self._undisturbed(fn):
            return await self._commit(fn)
        async with self._alone:
            for _ in range(RETRIES):
                if await self._undisturbed(fn):
                    return await self._commit(fn)
        raise UnavailableError("store-busy", "the change met others again and again")

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        result, asked = await self._asking(fn)
        await self.clock.sleep(asked * QUESTION_S)
        return result

    async def close(self) -> None:
        await self.store.close()

    async def write_beside(self, every_s: float) -> None:
        """Have others commit so often, until cancelled."""
        while True:
            await self.clock.sleep(every_s)
            self.commits += 1

    async def _undisturbed(self, fn: Callable[[Transaction], T]) -> bool:
        """Let the time pass that the transaction takes; returns whether nobody committed meanwhile."""
        before, asked = self.commits, 0

        def rehearse(tx: Transaction) -> None:
            nonlocal asked
            asked = _counted(fn, tx)[1]
            raise _Rehearsed

        try:
            await self.store.transact(rehearse)
        except _Rehearsed:
            await self.clock.sleep(asked * QUESTION_S)
        return self.commits == before

    async def _commit(self, fn: Callable[[Transaction], T]) -> T:
        self.commits += 1
        return await self.store.transact(fn)

    async def _asking(self, fn: Callable[[Transaction], T]) -> tuple[T, int]:
        return await self.store.read(lambda tx: _counted(fn, tx))


class _Rehearsed(Exception):
    """Nothing of it is to be stored."""


def _counted(fn: Callable[[Transaction], T], tx: Transaction) -> tuple[T, int]:
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    counting: Any = _Asked(tx, count)
    return fn(counting), asked
