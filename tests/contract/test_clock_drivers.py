"""The clock's contract on real and on virtual time, and what only virtual time can do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from shellwego.core.ids import make_id
from shellwego.drivers.clock.ids import IdSource
from shellwego.drivers.clock.memory import MemoryClock
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.clock.virtual import StuckError, VirtualClock
from shellwego.ports.clock import Clock
from tests.contract.clock_contract import ClockContract


class TestSystemClock(ClockContract):
    @pytest.fixture
    def clock(self) -> Clock:
        return SystemClock()


class TestMemoryClock(ClockContract):
    @pytest.fixture
    async def clock(self) -> AsyncIterator[Clock]:
        clock = MemoryClock()

        async def let_time_pass() -> None:
            while True:
                await clock.advance(0.01)

        passing = asyncio.ensure_future(let_time_pass())
        yield clock
        passing.cancel()


class HastyClock(SystemClock):
    """Wrong: nobody sleeps, and ids repeat."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    def new_id(self, prefix: str) -> str:
        return make_id(prefix, 0, bytes(10))


class TestTheContractRejectsAWrongClock:
    async def test_that_does_not_sleep(self) -> None:
        with pytest.raises(AssertionError):
            await ClockContract().test_a_sleeper_wakes_after_its_time_and_not_before(HastyClock())

    async def test_whose_ids_repeat(self) -> None:
        with pytest.raises(AssertionError):
            await ClockContract().test_ids_have_their_form_and_sort_in_the_order_they_were_made(HastyClock())


async def test_virtual_time_stands_still_by_itself() -> None:
    clock = VirtualClock()
    before = clock.now(), clock.monotonic()
    await asyncio.sleep(0.01)
    assert (clock.now(), clock.monotonic()) == before


async def test_effects_of_a_sleeper_are_seen_before_the_next_wakes() -> None:
    clock = VirtualClock()
    log: list[tuple[str, float]] = []
    rung = asyncio.Event()

    async def ring() -> None:
        await clock.sleep(1)
        rung.set()

    async def answer() -> None:
        await rung.wait()
        log.append(("answered", clock.monotonic()))

    async def late() -> None:
        await clock.sleep(1.001)
        log.append(("late", clock.monotonic()))

    async with asyncio.TaskGroup() as tasks:
        for work in (ring(), answer(), late()):
            tasks.create_task(work)
        await clock.advance(5)
    assert log == [("answered", 1.0), ("late", 1.001)]
    assert clock.monotonic() == 5.0


async def test_a_day_passes_while_all_wait() -> None:
    clock = VirtualClock()

    async def work() -> float:
        for _ in range(24):
            await clock.sleep(3600)
        return clock.monotonic()

    assert await clock.run(work(), timeout=100_000) == 86_400.0


async def test_what_cannot_happen_is_told_and_not_waited_for() -> None:
    clock = VirtualClock()
    with pytest.raises(StuckError):
        await clock.until(lambda: False)
    with pytest.raises(StuckError):
        await clock.run(asyncio.Event().wait())
    with pytest.raises(StuckError):
        await clock.run(clock.sleep(61), timeout=60)


async def test_the_same_seed_gives_the_same_ids() -> None:
    assert VirtualClock(seed=3).new_id("app") == VirtualClock(seed=3).new_id("app")
    assert VirtualClock(seed=3).new_id("app") != VirtualClock(seed=4).new_id("app")


def test_ids_rise_also_when_the_clock_steps_back_and_the_entropy_is_spent() -> None:
    ids = IdSource(lambda size: b"\xff" * size)
    made = [ids.new("app", moment) for moment in (1000, 1000, 500, 1001)]
    assert made == sorted(set(made))


def test_ids_made_by_many_threads_are_all_different() -> None:
    clock = SystemClock()
    made: list[str] = []

    def make() -> None:
        made.extend(clock.new_id("app") for _ in range(500))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2000
