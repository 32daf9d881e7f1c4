"""Port: time and randomness, so that logic runs on virtual time in tests; and what a loop waits by, which is the same on any
clock: a timer, a ring from whoever has news, or something that happens elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

Happening = Callable[[], Coroutine[Any, Any, object]]
_NEVER = float("inf")


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch, UTC. May step; only for records and for people."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back; for every duration."""

    async def sleep(self, seconds: float) -> None:
        """Wait so long."""

    def new_id(self, prefix: str) -> str:
        """A fresh id (`core.ids`)."""


class Waiter:
    """Waits for one loop, again and again. `aclose` it in the end.

    What did not happen is waited for on at the next wait, not begun anew, and so is a timer that rings too soon: most waits
    of a busy loop end by a ring, and to begin and call off the rest would cost more than what the loop then does. What
    happens while nobody waits ends the next wait at once.
    """

    def __init__(self, clock: Clock, *happenings: Happening) -> None:
        self._clock = clock
        self._happenings = happenings
        self._tasks: dict[Happening, asyncio.Task[object]] = {}
        self._awake = asyncio.Event()
        self._rung = False
        self._due = _NEVER
        """When a ring that was not to be at once is."""
        self._alarm: asyncio.Task[None] | None = None
        self._rings_at = _NEVER

    def ring(self, delay_s: float = 0.0) -> None:
        """End the wait, or the next one; so many seconds from now at the latest."""
        if delay_s > 0:
            self._due = min(self._due, self._clock.monotonic() + delay_s)
        else:
            self._rung = True
        self._awake.set()

    def clear(self) -> None:
        """Forget the rings so far: what they were about is looked at now."""
        self._rung, self._due = False, _NEVER

    async def wait(self, seconds: float | None = None) -> None:
        """Return after a ring, a happening, or so many seconds; None: without a limit. Raises what a happening raised."""
        limit = _NEVER if seconds is None else self._clock.monotonic() + max(seconds, 0.0)
        for happening in self._happenings:
            if happening not in self._tasks:
                self._begin(happening)
        await asyncio.sleep(0)
        while not (self._rung or self._happened() or self._clock.monotonic() >= min(limit, self._due)):
            self._awake.clear()
            self._set_alarm(min(limit, self._due))
            await self._awake.wait()

    async def aclose(self) -> None:
        """Wait for nothing any more, until somebody waits again."""
        tasks = [*self._tasks.values(), *([self._alarm] if self._alarm else [])]
        self._tasks.clear()
        self._alarm, self._rings_at = None, _NEVER
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, happening: Happening) -> None:
        task = self._tasks[happening] = asyncio.ensure_future(happening())
        task.add_done_callback(lambda _: self._awake.set())

    def _happened(self) -> bool:
        if not self._tasks:  # as of most: they wait for a ring
            return False
        over = [(happening, task) for happening, task in self._tasks.items() if task.done()]
        for happening, _ in over:
            del self._tasks[happening]
        for _, task in over:
            task.result()
        return bool(over)

    def _set_alarm(self, moment: float) -> None:
        if moment >= self._rings_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._rings_at = moment
        self._alarm = asyncio.ensure_future(self._sound(moment - self._clock.monotonic()))

    async def _sound(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._rings_at = _NEVER
        self._awake.set()
