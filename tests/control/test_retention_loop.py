"""Events and deliveries are kept for a time, and then let go of: the oldest first, a bounded number at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from shellwego.control.events import events_after, resumed_after
from shellwego.control.loops import retention as retention_loop
from shellwego.control.loops.outbox import relay
from shellwego.control.loops.retention import BATCH, Retention, prune
from shellwego.control.marks import PRUNED, mark
from shellwego.control.scopes import SYSTEM
from shellwego.control.unit import Control, Unit
from shellwego.core.webhooks import Delivery, DeliveryState
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.store import eq

SHORT = Retention(events_s=100.0, deliveries_s=100.0)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def control(clock: VirtualClock) -> Control:
    return Control(MemoryStore(clock), MemoryBus(), clock)


async def happen(control: Control, count: int) -> None:
    def work(unit: Unit) -> None:
        for _ in range(count):
            unit.emit("app.changed", "app_1")

    await control.commit(work)
    await relay(control)


async def seqs(control: Control) -> list[int]:
    return [event.seq for event in await control.read(lambda tx: events_after(tx, SYSTEM, 0, 10_000))]


async def test_events_past_their_time_go_and_the_mark_says_how_far(control: Control, clock: VirtualClock) -> None:
    await happen(control, BATCH + 5)
    await clock.advance(60)
    await happen(control, 3)
    await clock.advance(60)
    await prune(control, SHORT)
    assert await seqs(control) == [BATCH + 6, BATCH + 7, BATCH + 8]
    assert await control.read(lambda tx: mark(tx, PRUNED)) == BATCH + 5
    await prune(control, SHORT)
    assert len(await seqs(control)) == 3


async def test_events_of_a_clock_that_was_set_back_since_keep_no_others(control: Control, clock: VirtualClock) -> None:
    def ahead(unit: Unit) -> None:
        unit.emit("app.changed", "app_1")
        (event,) = unit.tx.events.select(eq("seq", 0))
        unit.tx.events.update(replace(event, time=unit.now() + 1e6))

    await control.commit(ahead)
    await relay(control)
    await happen(control, 2)
    await clock.advance(200)
    await happen(control, 1)
    await prune(control, SHORT)
    assert await seqs(control) == [4]


async def test_an_event_that_is_not_out_yet_is_kept(control: Control, clock: VirtualClock) -> None:
    await control.commit(lambda unit: unit.emit("app.changed", "app_1"))
    await clock.advance(1000)
    await prune(control, SHORT)
    await relay(control)
    assert await seqs(control) == [1]


async def test_a_reader_within_what_is_kept_gets_no_notice(control: Control, clock: VirtualClock) -> None:
    await happen(control, 2)
    await clock.advance(200)
    await happen(control, 1)
    await prune(control, SHORT)
    for seq, types in (
        (0, ["events.pruned", "app.changed"]),
        (1, ["events.pruned", "app.changed"]),
        (2, ["app.changed"]),
    ):
        found = await control.read(lambda tx, seq=seq: resumed_after(tx, SYSTEM, seq))
        assert [event.type for event in found] == types


async def test_finished_deliveries_go_and_those_that_wait_stay(control: Control, clock: VirtualClock) -> None:
    one = Delivery(
        id="dlv_1",
        webhook_id="whk_1",
        event_id="evt_1",
        seq=1,
        type="app.changed",
        body="{}",
        state=DeliveryState.DELIVERED,
        next_at=0.0,
        created_at=clock.now(),
    )

    def work(unit: Unit) -> None:
        unit.tx.deliveries.insert(one)
        unit.tx.deliveries.insert(replace(one, id="dlv_2", state=DeliveryState.WAITING))
        unit.tx.deliveries.insert(replace(one, id="dlv_3", state=DeliveryState.FAILED))

    await control.commit(work)
    await prune(control, SHORT)
    assert await control.read(lambda tx: tx.deliveries.count()) == 3
    await clock.advance(101)
    await prune(control, SHORT)
    assert [row.id for row in await control.read(lambda tx: tx.deliveries.select())] == ["dlv_2"]


async def test_the_loop_prunes_at_start_and_on_its_timer(control: Control, clock: VirtualClock) -> None:
    await happen(control, 1)
    await clock.advance(200)
    loop = asyncio.ensure_future(retention_loop.run(control, SHORT))
    await clock.advance(1)
    assert await seqs(control) == []
    await happen(control, 1)
    await clock.advance(retention_loop.EVERY_S + 200)
    assert await seqs(control) == []
    loop.cancel()
