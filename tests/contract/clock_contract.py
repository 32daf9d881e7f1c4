"""What every clock must do."""

from __future__ import annotations

import asyncio

from shellwego.core.ids import is_id
from shellwego.ports.clock import Clock


class ClockContract:
    """Inherit, and give fixtures `clock` and, where time does not pass by itself, `_passing_time`."""

    async def test_a_sleeper_wakes_after_its_time_and_not_before(self, clock: Clock) -> None:
        before, wall = clock.monotonic(), clock.now()
        await clock.sleep(0.02)
        assert clock.monotonic() - before >= 0.02
        assert clock.now() >= wall

    async def test_sleepers_wake_in_the_order_of_their_hours(self, clock: Clock) -> None:
        woken: list[float] = []

        async def sleep(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append(seconds)

        await asyncio.gather(sleep(0.06), sleep(0.0), sleep(0.03))
        assert woken == [0.0, 0.03, 0.06]

    async def test_a_sleeper_that_is_cancelled_is_gone(self, clock: Clock) -> None:
        sleeper = asyncio.ensure_future(clock.sleep(3600))
        await asyncio.sleep(0)
        sleeper.cancel()
        await clock.sleep(0.01)
        assert sleeper.cancelled()

    async def test_ids_have_their_form_and_sort_in_the_order_they_were_made(self, clock: Clock) -> None:
        ids = [clock.new_id("app") for _ in range(1000)]
        assert all(is_id("app", id_) for id_ in ids)
        assert ids == sorted(set(ids))
