"""Virtual time: a minute of heart-beats in a few milliseconds, the same way each run.

Time stands still while any task can run. It moves only when a test says so: by `advance`, or by `run` and `until`, which
jump to the next sleeper whenever every task waits. Sleepers wake in the order of their hour, one hour at a time, so causes
come before effects.

"Every task waits" is read off the event loop's list of ready callbacks, which is asyncio's own and private to it; uvloop
has none. What a thread or a socket will bring is not seen, so virtual time is for logic on memory drivers.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shellwego.drivers.clock.ids import IdSource

T = TypeVar("T")

_MAX_STEPS = 100_000


class StuckError(AssertionError):
    """What the test waits for cannot happen, or did not within its time."""


class VirtualClock:
    """See `ports.clock.Clock`. `seed` decides the ids."""

    def __init__(self, start: float = 1_700_000_000.0, seed: int = 0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._ids = IdSource(random.Random(seed).randbytes)  # noqa: S311 - repeatable, not secret
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> float:
        return self._start + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    def new_id(self, prefix: str) -> str:
        return self._ids.new(prefix, int(self.now() * 1000))

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._elapsed + seconds, self._count, waker))
        await waker

    async def advance(self, seconds: float) -> None:
        """Let so much time pass, waking whoever is due on the way."""
        end = self._elapsed + seconds
        await settle()
        while self._next_hour() <= end:
            await self._jump()
        self._elapsed = end
        await settle()

    async def until(self, condition: Callable[[], bool], timeout: float = 3600.0) -> None:
        """Let time pass until the condition holds.

        Raises:
            StuckError: it does not within `timeout` virtual seconds, or nobody sleeps any more.
        """
        deadline = self._elapsed + timeout
        await settle()
        while not condition():
            if self._next_hour() > deadline:
                raise StuckError(f"nothing more happens before {deadline:.3f} s; it is {self._elapsed:.3f} s")
            await self._jump()

    async def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = 3600.0) -> T:
        """Run to the end, letting time pass whenever all wait."""
        task = asyncio.ensure_future(coroutine)
        try:
            await self.until(task.done, timeout)
        except StuckError:
            task.cancel()
            raise
        return await task

    def _next_hour(self) -> float:
        while self._sleepers and self._sleepers[0][2].done():  # its task was cancelled
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else float("inf")

    async def _jump(self) -> None:
        """Move to the next hour and wake all who sleep until then."""
        self._elapsed = max(self._elapsed, self._next_hour())
        while self._next_hour() <= self._elapsed:
            heapq.heappop(self._sleepers)[2].set_result(None)
        await settle()


async def settle() -> None:
    """Let every other task run until all of them wait.

    Raises:
        StuckError: they go on for ever without waiting.
    """
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]  # asyncio shows it in no other way
    for _ in range(_MAX_STEPS):
        await asyncio.sleep(0)
        if not ready:
            return
    raise StuckError("a task spins without ever waiting")
