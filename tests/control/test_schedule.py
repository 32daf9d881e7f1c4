"""What a loop has to do next: soonest first, and what was asked for ahead of the rest, which has its turn all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shellwego.control.loops.schedule import AHEAD, Schedule
from shellwego.drivers.clock.virtual import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def schedule(clock: VirtualClock) -> AsyncIterator[Schedule]:
    schedule = Schedule(clock)
    yield schedule
    await schedule.aclose()


async def test_a_key_is_taken_once_at_its_soonest_moment(clock: VirtualClock, schedule: Schedule) -> None:
    schedule.add("a", 5)
    schedule.add("a", 2)
    schedule.add("b", 3)
    schedule.add("a", 4, ahead=True)
    began = clock.monotonic()
    assert await clock.run(schedule.take(9)) == ["a"]
    assert clock.monotonic() - began == 2
    assert await clock.run(schedule.take(9)) == ["b"]
    taking = asyncio.ensure_future(schedule.take(9))
    await clock.advance(60)
    assert not taking.done()
    schedule.add("a")
    await clock.advance(0)
    assert taking.result() == ["a"]


async def test_no_more_is_taken_than_was_asked_for(schedule: Schedule) -> None:
    for key in "abc":
        schedule.add(key)
    assert [await schedule.take(2), await schedule.take(2)] == [["a", "b"], ["c"]]


async def test_what_was_asked_for_goes_ahead_though_it_waits_behind_already(schedule: Schedule) -> None:
    for key in "abc":
        schedule.add(key)
    schedule.add("c", ahead=True)
    assert await schedule.take(9) == ["c", "a", "b"]


async def test_what_waits_behind_has_its_turn_though_ever_more_goes_ahead(schedule: Schedule) -> None:
    schedule.add("behind")
    taken = []
    for number in range(AHEAD + 1):
        schedule.add(f"ahead-{number}", ahead=True)
        schedule.add("x", ahead=True)
        taken += await schedule.take(1)
    assert taken.count("behind") == 1
    assert taken[-1] == "behind"


async def test_what_is_not_due_yet_goes_ahead_of_nothing(schedule: Schedule) -> None:
    schedule.add("later", 1, ahead=True)
    schedule.add("now")
    assert await schedule.take(9) == ["now"]
