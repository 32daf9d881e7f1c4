"""A server that dies at a chosen step of what it does with volumes, and is started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from shellwego.core.errors import UnavailableError
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.store import Transaction

T = TypeVar("T")
Rows = frozenset[tuple[str, int]]


class MortalStore:
    """The server's way to what outlives it. Once armed, each change of volumes, copies or instances is two steps: before it
    is stored, and after, when nobody was told yet. At the deadly one the server dies."""

    def __init__(self, clock: VirtualClock) -> None:
        self._real = MemoryStore(clock)
        self._deadly: int | None = None
        self._armed = False
        self._dead = False
        self.steps = 0
        self.died = asyncio.Event()

    def arm(self, deadly: int | None) -> None:
        """Count from now on; None: nobody dies."""
        self._armed, self._deadly = True, deadly

    def revive(self) -> None:
        self._dead = False

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        changes = False

        def run(tx: Transaction) -> T:
            nonlocal changes
            before = _rows(tx)
            result = fn(tx)
            changes = _rows(tx) != before
            if changes:
                self._step()
            return result

        self._refuse_dead()
        result = await self._real.transact(run)
        if changes:
            self._step()
        return result

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return await self._real.read(fn)

    async def close(self) -> None:
        await self._real.close()

    def _step(self) -> None:
        self.steps += self._armed
        if self._armed and self.steps == self._deadly:
            self._dead = True
            self.died.set()
        self._refuse_dead()

    def _refuse_dead(self) -> None:
        if self._dead:
            raise UnavailableError("store-closed", "the server is dead")


def _rows(tx: Transaction) -> Rows:
    found = (tx.volumes.select(), tx.replicas.select(), tx.instances.select())
    return frozenset((row.id, row.version) for rows in found for row in rows)
