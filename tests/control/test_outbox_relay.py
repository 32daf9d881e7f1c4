"""The outbox relay: every committed event gets one number, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest

from shellwego.control.loops.outbox import COALESCE_S, relay, relay_audit, relay_forever
from shellwego.control.numbering import PORTION
from shellwego.control.unit import Control, Unit
from shellwego.core.audit import PLATFORM, position
from shellwego.core.events import Counter, Event
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.location import PostgresUrl
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import Order, Store, Transaction
from shellwego.wire import subjects
from tests.contract.store_databases import Database

T = TypeVar("T")
_SERIALIZABLE = psycopg.IsolationLevel.SERIALIZABLE


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def control(clock: VirtualClock) -> Control:
    return Control(MemoryStore(clock), MemoryBus(), clock)


@pytest.fixture
async def relaying(control: Control) -> AsyncIterator[None]:
    task = asyncio.ensure_future(relay_forever(control))
    yield
    task.cancel()


async def emit(control: Control, *types: str) -> None:
    def work(unit: Unit) -> None:
        for type_ in types:
            unit.emit(type_, "app_1")

    await control.commit(work)


async def numbered(control: Control) -> list[tuple[int, str]]:
    def read(tx: Transaction) -> list[Event]:
        return tx.events.select(order=Order("seq"))

    return [(event.seq, event.type) for event in await control.read(read)]


async def test_events_are_numbered_in_the_order_they_were_written(control: Control) -> None:
    await emit(control, "first", "second", "third")
    await emit(control, "fourth")
    assert await relay(control) == 4
    assert await numbered(control) == [(1, "first"), (2, "second"), (3, "third"), (4, "fourth")]


async def test_a_number_is_given_once(control: Control) -> None:
    await emit(control, "first")
    await relay(control)
    assert await relay(control) == 0
    await emit(control, "second")
    await relay(control)
    assert await numbered(control) == [(1, "first"), (2, "second")]


async def test_more_events_than_a_portion_are_all_numbered(control: Control) -> None:
    await emit(control, *("many" for _ in range(PORTION + 7)))
    assert await relay(control) == PORTION + 7
    assert [seq for seq, _ in await numbered(control)] == list(range(1, PORTION + 8))


@pytest.mark.usefixtures("relaying")
async def test_an_event_is_numbered_on_its_hint_without_waiting_for_the_timer(
    control: Control, clock: VirtualClock
) -> None:
    await clock.advance(0)
    await emit(control, "first")
    await clock.advance(COALESCE_S)
    assert await numbered(control) == [(1, "first")]


@pytest.mark.usefixtures("relaying")
async def test_a_lost_hint_costs_latency_only(control: Control, clock: VirtualClock) -> None:
    await clock.advance(0)
    silent = Control(control.store, MemoryBus(), clock)
    await emit(silent, "first")
    await clock.advance(0)
    assert await numbered(control) == [(0, "first")]
    await clock.advance(2)
    assert await numbered(control) == [(1, "first")]


async def test_what_was_left_by_a_crash_is_numbered_at_start(control: Control, clock: VirtualClock) -> None:
    await emit(control, "first")
    relaying = asyncio.ensure_future(relay_forever(control))
    await clock.advance(0)
    assert await numbered(control) == [(1, "first")]
    relaying.cancel()


@pytest.mark.usefixtures("relaying")
async def test_listeners_hear_once_the_numbers_are_out(control: Control, clock: VirtualClock) -> None:
    await clock.advance(0)
    heard: list[list[tuple[int, str]]] = []

    async def listen() -> None:
        async with control.bus.subscribe(subjects.EVENTS) as hints:
            async for _ in hints:
                heard.append(await numbered(control))

    listening = asyncio.ensure_future(listen())
    await clock.advance(0)
    await emit(control, "first")
    await clock.advance(5)
    assert heard[-1] == [(1, "first")]
    assert len(heard) <= 3
    listening.cancel()


async def test_two_relays_on_one_database_number_each_event_once(tmp_path: Path) -> None:
    clock = SystemClock()
    store = open_sqlite(tmp_path / "state.db", clock)
    control = Control(store, MemoryBus(), clock)
    await asyncio.gather(*(emit(control, f"{n:02}a", f"{n:02}b") for n in range(20)))
    await asyncio.gather(relay(control), relay(control))
    seqs = await numbered(control)
    await store.close()
    assert [seq for seq, _ in seqs] == list(range(1, 41))
    assert [type_[:2] for _, type_ in seqs[::2]] == [type_[:2] for _, type_ in seqs[1::2]]


@dataclass(slots=True)
class Paused:
    """The way of a server that stands still after its first look."""

    store: Store
    going: asyncio.Event

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        return await self.store.transact(fn)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        found = await self.store.read(fn)
        await self.going.wait()
        return found

    async def close(self) -> None:
        await self.store.close()


async def test_a_relay_that_stood_still_gives_no_number_that_another_gave(control: Control) -> None:
    await emit(control, "first")
    way = Paused(control.store, asyncio.Event())
    relaying = asyncio.ensure_future(relay(Control(way, control.bus, control.clock)))
    await asyncio.sleep(0)
    await control.commit(
        lambda unit: unit.tx.events.insert(Event(id="a", time=0.0, type="of a late clock", resource=""))
    )
    assert await relay(control) == 2
    await emit(control, "third")
    way.going.set()
    assert await relaying == 1
    assert await numbered(control) == [(1, "of a late clock"), (2, "first"), (3, "third")]


@dataclass(slots=True)
class Disturbed:
    """A server's way to a database on which others write: in every try of every transaction two that meet each other."""

    store: Store
    url: PostgresUrl
    tries: int = 0

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        def run(tx: Transaction) -> T:
            tx.now()  # from here on it does not see what others do
            self.tries += 1
            self._meet()
            return fn(tx)

        return await self.store.transact(run)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return await self.store.read(fn)

    async def close(self) -> None:
        await self.store.close()

    def _meet(self) -> None:
        """One writes an event and a record after it read what the other changes meanwhile. So it came first of the two, and
        whoever looked for events or records and does not see its own must have come before it."""
        with closing(psycopg.connect(self.url.dsn)) as first, closing(psycopg.connect(self.url.dsn)) as second:
            first.isolation_level = second.isolation_level = _SERIALIZABLE
            first.execute("SELECT value FROM counters WHERE id = 'x'")
            second.execute("UPDATE counters SET value = value + 1, version = version + 1 WHERE id = 'x'")
            second.commit()
            for table in ("events", "audit"):
                first.execute(self._copy(table), {"id": f"zzz_{self.tries}"})
            first.commit()

    def _copy(self, table: str) -> str:
        """The text that writes the oldest row once more, under an id of its own."""
        with closing(psycopg.connect(self.url.dsn)) as connection:
            columns = [column.name for column in connection.execute(f"SELECT * FROM {table} LIMIT 0").description or ()]  # noqa: S608
        number = {"seq": "0", "position": "''", "id": "%(id)s"}
        values = ", ".join(number.get(name, name) for name in columns)
        return f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} ORDER BY id LIMIT 1"  # noqa: S608


@pytest.mark.databases("postgres")
async def test_numbers_are_given_at_the_first_try_though_others_write(database: Database) -> None:
    """The database would end whoever looked for rows without a number, each time."""
    assert isinstance(database.location, PostgresUrl)
    quiet = Control(database.open(), MemoryBus(), SystemClock())
    way = Disturbed(quiet.store, database.location)
    busy = Control(way, MemoryBus(), SystemClock())

    def write(unit: Unit) -> None:
        unit.tx.counters.insert(Counter(id="x", value=0))
        for _ in range(2 * PORTION):
            unit.emit("old", "app_1")
            unit.audit("apps:write", "app_1")

    await quiet.commit(write)
    with closing(psycopg.connect(database.location.dsn, autocommit=True)) as connection:
        connection.execute("ANALYZE")  # it knows now how few rows there are
    assert (await relay(busy), await relay_audit(busy), way.tries) == (2 * PORTION + 2, 2 * PORTION + 5, 6)
    assert [seq for seq, _ in await numbered(quiet)] == [0] * 4 + list(range(1, 2 * PORTION + 3))
    positions = await quiet.read(lambda tx: [record.position for record in tx.audit.select(order=Order("position"))])
    assert positions == [""] + [position(PLATFORM, number) for number in range(1, 2 * PORTION + 6)]
