"""The databases that a test may run on, each opened as often as servers would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.location import Location
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.store.postgres import PostgresStore, open_postgres
from shellwego.drivers.store.sqlite import SqliteStore, _Job, open_sqlite
from shellwego.ports.clock import Clock
from shellwego.ports.store import Store, Transaction

T = TypeVar("T")
SQL = ("sqlite", "postgres")
ALL = ("memory", *SQL)


@dataclass(slots=True)
class Database:
    """One database; None as location stands for memory, which one server only can open."""

    location: Location | None
    opened: list[Store] = field(default_factory=list)

    def open(self, clock: Clock | None = None) -> Store:
        """As a server does. With a clock time is that clock's."""
        match self.location:
            case None:
                store: Store = MemoryStore(clock or SystemClock())
            case Path():
                store = open_sqlite(self.location, clock or SystemClock())
            case _:
                store = open_postgres(self.location, clock=clock)
        self.opened.append(store)
        return store

    def open_inline(self, clock: Clock) -> Store:
        """For virtual time, which cannot see what a thread is about: everything happens in the event loop."""
        store = self.open(clock)
        return store if self.location is None else InlineStore(store)

    async def close(self) -> None:
        for store in self.opened:
            await store.close()


@dataclass(slots=True)
class InlineStore:
    """A real store whose transactions run at once, where they are asked for."""

    store: Store

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        await asyncio.sleep(0)
        if isinstance(self.store, PostgresStore):
            return self.store._transact(fn)
        assert isinstance(self.store, SqliteStore)
        return _write_now(self.store, fn)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        await asyncio.sleep(0)
        assert isinstance(self.store, PostgresStore | SqliteStore)
        return self.store._read(fn)

    async def close(self) -> None:
        await self.store.close()


def _write_now(store: SqliteStore, fn: Callable[[Transaction], T]) -> T:
    """The writer's own work, while its thread has none."""
    loop = asyncio.get_running_loop()
    job = _Job(fn, loop, loop.create_future())
    job.future.cancel()  # nobody waits for it
    store._writer._commit([job])
    if job.error is not None:
        raise job.error
    result: T = job.result
    return result
