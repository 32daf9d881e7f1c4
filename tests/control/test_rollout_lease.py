"""The lease of a loop: one holder at a time, whatever happens to the store or to a holder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from structlog.testing import capture_logs

from shellwego.control.loops.lease import STOP_S, TERM_S, Leases, run_leased
from shellwego.control.unit import Control
from shellwego.core.errors import UnavailableError
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.store import Transaction

T = TypeVar("T")


@dataclass(slots=True)
class UnreliableStore:
    """One control plane's way to the store: it may be cut, or hang."""

    store: MemoryStore
    clock: VirtualClock
    cut: bool = False
    hangs: bool = False

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        await self._reached()
        return await self.store.transact(fn)

    async def _reached(self) -> None:
        if self.hangs:
            await self.clock.sleep(1e9)
        if self.cut:
            raise UnavailableError("store-closed", "no way to the store")

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        await self._reached()
        return await self.store.read(fn)

    async def close(self) -> None:
        await self.store.close()


@dataclass(slots=True)
class Planes:
    """Control planes that contend for one loop; `working` are those that work now."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    working: set[str] = field(default_factory=set)
    most: int = 0
    swallows: int = 0
    """So many cancellations are swallowed by whatever works."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    store: MemoryStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock)

    def start(self, holder: str) -> UnreliableStore:
        way = UnreliableStore(self.store, self.clock)
        control = Control(way, MemoryBus(), self.clock)
        work = run_leased(control, "x", holder, lambda _: lambda: self._work(holder))
        self.tasks.append(asyncio.ensure_future(work))
        return way

    async def _work(self, holder: str) -> None:
        self.working.add(holder)
        self.most = max(self.most, len(self.working))
        swallowed = 0
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    swallowed += 1
                    if swallowed > self.swallows:
                        raise
        finally:
            self.working.discard(holder)

    async def end(self) -> None:
        """A clean one, for whoever has the store."""
        for task in self.tasks:
            task.cancel()
        await self.clock.run(_all(self.tasks))


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_of_several_works() -> None:
    planes = Planes()
    for holder in ("a", "b", "c"):
        planes.start(holder)
    await planes.clock.advance(120)
    assert planes.working == {"a"}
    assert planes.most == 1
    await planes.end()


@pytest.mark.parametrize("fault", ["cut", "hangs"])
async def test_a_holder_without_the_store_stops_before_another_begins(fault: str) -> None:
    planes = Planes()
    way = planes.start("a")
    await planes.clock.advance(1)
    planes.start("b")
    setattr(way, fault, True)
    await planes.clock.advance(STOP_S + 0.1)
    assert planes.working == set()
    await planes.clock.advance(TERM_S)
    assert planes.working == {"b"}
    assert planes.most == 1
    await planes.end()


async def test_a_lease_is_renewed_however_much_waits_on_the_way_of_the_loops() -> None:
    planes = Planes()
    way = UnreliableStore(planes.store, planes.clock)
    leases = Leases(Control(way, MemoryBus(), planes.clock), "a", planes.store)
    lease = leases.of("x")
    planes.tasks += [asyncio.ensure_future(leases.run()), asyncio.ensure_future(lease.run(lambda: planes._work("a")))]
    await planes.clock.advance(1)
    planes.start("b")
    way.hangs = True
    await planes.clock.advance(4 * TERM_S)
    assert planes.working == {"a"}
    await planes.end()


async def test_a_holder_that_comes_back_under_its_name_does_not_wait_for_itself() -> None:
    planes = Planes()
    planes.start("a")
    await planes.clock.advance(7)
    await planes.end()
    planes.start("a")
    await planes.clock.advance(0.1)
    assert planes.working == {"a"}
    await planes.end()


async def test_work_that_swallows_its_end_is_told_again_and_holds_nobody_up() -> None:
    """As a library does that catches every cancellation: what went on would be the only one to work, and not allowed to."""
    planes = Planes(swallows=1)
    way = planes.start("a")
    await planes.clock.advance(1)
    planes.start("b")
    way.hangs = True
    await planes.clock.advance(2 * TERM_S)
    assert planes.working == {"b"}
    way.hangs = False
    planes.tasks[1].cancel()
    await planes.clock.advance(2 * TERM_S)
    assert planes.working == {"a"}, "it may work again"
    await planes.end()


async def test_work_that_fails_is_begun_again() -> None:
    clock = VirtualClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)
    begun: list[float] = []

    async def work() -> None:
        begun.append(clock.monotonic())
        raise ValueError("a defect")

    task = asyncio.ensure_future(run_leased(control, "x", "a", lambda _: work))
    await clock.advance(40)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(begun) >= 4
    assert begun[-1] - begun[-2] > begun[1] - begun[0], "later and later"


async def test_a_store_that_refuses_for_long_is_told_in_few_lines_and_when_it_is_over() -> None:
    planes = Planes()
    with capture_logs() as lines:
        way = planes.start("a")
        await planes.clock.advance(1)
        way.cut = True
        await planes.clock.advance(600)
        way.cut = False
        await planes.clock.advance(60)
    await planes.end()
    told = [line for line in lines if line["event"] == "loop.lease_claim_failed"]
    assert 9 <= len(told) <= 11
    assert {line["reason"] for line in told} == {"no way to the store"}
    assert not any(line.get("exc_info") for line in lines)
    (over,) = [line for line in lines if line["event"] == "loop.works_again"]
    assert over["after"] == "loop.lease_claim_failed"
    assert over["failures"] > len(told)


async def test_a_defect_is_told_with_its_trace_once_a_minute() -> None:
    clock = VirtualClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)

    async def work() -> None:
        raise ValueError("a defect")

    with capture_logs() as lines:
        task = asyncio.ensure_future(run_leased(control, "x", "a", lambda _: work))
        await clock.advance(600)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert 9 <= len(lines) <= 11
    assert all(isinstance(line["exc_info"], ValueError) for line in lines)


async def test_a_store_that_refuses_one_of_several_tasks_is_no_defect() -> None:
    clock = VirtualClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)

    async def refused() -> None:
        raise UnavailableError("store-closed", "no way to the store")

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refused())

    with capture_logs() as lines:
        task = asyncio.ensure_future(run_leased(control, "x", "a", lambda _: work))
        await clock.advance(20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert {(line["reason"], line["exc_info"]) for line in lines} == {("no way to the store", None)}
