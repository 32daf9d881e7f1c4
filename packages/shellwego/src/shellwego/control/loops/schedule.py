"""What a loop has to do, and when: keys that are due at moments of the monotonic clock, soonest first.

A key is in it once, at its soonest moment. Waiting is on the injected clock, so loops run on virtual time.
"""

from __future__ import annotations

import asyncio

from shellwego.ports.clock import Clock


class Schedule:
    """Keys with the moments at which they are due."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._news = asyncio.Event()

    def add(self, key: str, delay_s: float = 0.0) -> None:
        """Make the key due in so many seconds, or sooner where it was due sooner already."""
        moment = self._clock.monotonic() + max(delay_s, 0.0)
        if moment < self._due.get(key, float("inf")):
            self._due[key] = moment
            self._news.set()

    async def take(self) -> list[str]:
        """Wait until something is due; returns all keys that are, and forgets them."""
        while True:
            now = self._clock.monotonic()
            ready = sorted((moment, key) for key, moment in self._due.items() if moment <= now)
            if ready:
                for _, key in ready:
                    del self._due[key]
                return [key for _, key in ready]
            await self._wait(min(self._due.values(), default=None), now)

    async def _wait(self, until: float | None, now: float) -> None:
        self._news.clear()
        if until is None:
            await self._news.wait()
            return
        news = asyncio.ensure_future(self._news.wait())
        alarm = asyncio.ensure_future(self._clock.sleep(until - now))
        try:
            await asyncio.wait({news, alarm}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            alarm.cancel()
