"""The outbox relay: every committed event gets one number, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shellwego.control.loops.outbox import BATCH, COALESCE_S, relay, relay_forever
from shellwego.control.unit import Control, Unit
from shellwego.core.events import Event
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import Order, Transaction
from shellwego.wire import subjects


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


async def test_more_events_than_a_batch_are_all_numbered(control: Control) -> None:
    await emit(control, *("many" for _ in range(BATCH + 7)))
    assert await relay(control) == BATCH + 7
    assert [seq for seq, _ in await numbered(control)] == list(range(1, BATCH + 8))


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
