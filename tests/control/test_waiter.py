"""What ends a wait: time, a ring, something that happens; and what is left for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.ports.clock import Waiter


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def waiter(clock: VirtualClock) -> AsyncIterator[Waiter]:
    waiter = Waiter(clock)
    yield waiter
    await waiter.aclose()


async def lasts(clock: VirtualClock, waiter: Waiter, seconds: float | None = None) -> float:
    """How long a wait takes."""
    began = clock.monotonic()
    await clock.run(waiter.wait(seconds))
    return clock.monotonic() - began


async def test_time_ends_it(clock: VirtualClock, waiter: Waiter) -> None:
    assert [await lasts(clock, waiter, seconds) for seconds in (3.0, 0.0, -1.0, 1.0)] == [3.0, 0.0, 0.0, 1.0]


async def test_a_ring_ends_it_also_the_one_that_came_before(clock: VirtualClock, waiter: Waiter) -> None:
    waiting = asyncio.ensure_future(waiter.wait())
    await clock.advance(7)
    assert not waiting.done()
    waiter.ring()
    await clock.advance(0)
    assert waiting.done()
    assert await lasts(clock, waiter) == 0.0, "it was not cleared"
    waiter.clear()
    assert await lasts(clock, waiter, 2.0) == 2.0


async def test_a_ring_may_be_due_later_and_a_sooner_one_counts(clock: VirtualClock, waiter: Waiter) -> None:
    waiter.ring(0.5)
    waiter.ring(3.0)
    assert await lasts(clock, waiter, 9.0) == 0.5
    waiter.clear()
    waiting = asyncio.ensure_future(waiter.wait(9.0))
    await clock.advance(1)
    waiter.ring(1.0)
    await clock.advance(0.9)
    assert not waiting.done()
    await clock.advance(0.1)
    assert waiting.done()


async def test_the_timer_of_a_wait_that_a_ring_ended_does_not_end_the_next(clock: VirtualClock, waiter: Waiter) -> None:
    waiter.ring()
    await waiter.wait(1.0)
    waiting = asyncio.ensure_future(waiter.wait(2.0))
    await clock.advance(0.5)
    waiter.ring()
    await clock.advance(0)
    assert waiting.done()
    waiter.clear()
    assert await lasts(clock, waiter, 5.0) == 5.0


async def test_what_happens_ends_it_and_what_did_not_is_not_begun_anew(clock: VirtualClock) -> None:
    begun: list[str] = []

    async def seldom() -> None:
        begun.append("seldom")
        await clock.sleep(10)

    async def often() -> None:
        begun.append("often")
        await clock.sleep(4)

    waiter = Waiter(clock, seldom, often)
    assert [await lasts(clock, waiter) for _ in range(3)] == [4.0, 4.0, 2.0]
    assert begun.count("seldom") == 1
    await waiter.aclose()


async def test_what_happened_while_nobody_waited_ends_the_next_wait_at_once(clock: VirtualClock) -> None:
    async def happens() -> None:
        await clock.sleep(1)

    waiter = Waiter(clock, happens)
    waiter.ring()
    await waiter.wait()
    waiter.clear()
    await clock.advance(5)
    assert await lasts(clock, waiter) == 0.0
    assert await lasts(clock, waiter) == 1.0
    await waiter.aclose()


async def test_what_a_happening_raises_is_raised(clock: VirtualClock) -> None:
    async def fails() -> None:
        raise LookupError("gone")

    waiter = Waiter(clock, fails)
    with pytest.raises(LookupError, match="gone"):
        await waiter.wait()
    await waiter.aclose()


async def test_after_the_end_nothing_is_left_that_waits(clock: VirtualClock) -> None:
    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    waiter = Waiter(clock, never)
    waiting = asyncio.ensure_future(waiter.wait(60))
    await clock.advance(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await waiter.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await lasts(clock, waiter, 90.0) == 90.0, "it may be taken up again"
    await waiter.aclose()
