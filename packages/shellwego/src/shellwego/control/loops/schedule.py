"""What a loop has to do, and when: keys that are due at moments of the monotonic clock, soonest first.

A key is in it once, at its soonest moment. Waiting is on the injected clock, so loops run on virtual time.
"""

from __future__ import annotations

from shellwego.ports.clock import Clock, Waiter


class Schedule:
    """Keys with the moments at which they are due. `aclose` it in the end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._waiter = Waiter(clock)

    def add(self, key: str, delay_s: float = 0.0) -> None:
        """Make the key due in so many seconds, or sooner where it was due sooner already."""
        moment = self._clock.monotonic() + max(delay_s, 0.0)
        if moment < self._due.get(key, float("inf")):
            self._due[key] = moment
            self._waiter.ring()

    async def take(self) -> list[str]:
        """Wait until something is due; returns all keys that are, and forgets them."""
        while True:
            self._waiter.clear()
            now = self._clock.monotonic()
            ready = sorted((moment, key) for key, moment in self._due.items() if moment <= now)
            if ready:
                for _, key in ready:
                    del self._due[key]
                return [key for _, key in ready]
            first = min(self._due.values(), default=None)
            await self._waiter.wait(None if first is None else first - now)

    async def aclose(self) -> None:
        """Nobody takes anything any more."""
        await self._waiter.aclose()
