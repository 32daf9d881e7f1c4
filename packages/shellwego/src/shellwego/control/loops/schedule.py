"""What a loop has to look at, and when: a queue of keys, each due at a moment of the monotonic clock, soonest first.

A key is in the queue once, at the soonest moment that was asked for. Keys that somebody asked for go ahead of those
that are only looked at from time to time: a look at everything may take long, and nobody is to wait behind it. The
periodic keys are not starved either, since one of every few keys that are taken is one of them. Waiting uses the
injected clock, so loops run on virtual time.
"""

from __future__ import annotations

import heapq

from shellwego.ports.clock import Clock, Waiter

AHEAD = 3
"""So many keys go ahead of one that waits behind them."""
_NEVER = float("inf")


class Schedule:
    """Keys with the moments at which they are due. `aclose` it in the end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead, self._behind = _Line(), _Line()
        self._went_ahead = 0
        self._waiter = Waiter(clock)

    def add(self, key: str, delay_s: float = 0.0, *, ahead: bool = False) -> None:
        """Make the key due in so many seconds, or sooner where it was due sooner already."""
        line = self._ahead if ahead else self._behind
        if line.add(key, self._clock.monotonic() + max(delay_s, 0.0)):
            self._waiter.ring()

    async def take(self, most: int) -> list[str]:
        """Wait until something is due; returns the next keys that are, and forgets them."""
        while True:
            self._waiter.clear()
            now = self._clock.monotonic()
            first = min(self._ahead.first(), self._behind.first())
            if first <= now:
                return self._due(now, most)
            await self._waiter.wait(None if first == _NEVER else first - now)

    async def aclose(self) -> None:
        """Nobody takes anything any more."""
        await self._waiter.aclose()

    def _due(self, now: float, most: int) -> list[str]:
        taken: list[str] = []
        while len(taken) < most and (line := self._next(now)) is not None:
            key = line.pop()
            for each in (self._ahead, self._behind):
                each.forget(key)
            taken.append(key)
        return taken

    def _next(self, now: float) -> _Line | None:
        """The line whose turn it is."""
        ahead, behind = self._ahead.first() <= now, self._behind.first() <= now
        if ahead and not (behind and self._went_ahead >= AHEAD):
            self._went_ahead = self._went_ahead + 1 if behind else 0
            return self._ahead
        self._went_ahead = 0
        return self._behind if behind else None


class _Line:
    """Keys by their moments."""

    def __init__(self) -> None:
        self._moments: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """Also of moments that do not hold any more."""

    def add(self, key: str, moment: float) -> bool:
        """Whether that is sooner than before."""
        sooner = moment < self._moments.get(key, _NEVER)
        if sooner:
            self._moments[key] = moment
            heapq.heappush(self._heap, (moment, key))
        return sooner

    def first(self) -> float:
        """The soonest moment; infinity where there is none."""
        while self._heap and self._moments.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else _NEVER

    def pop(self) -> str:
        """The key of the soonest moment, which is forgotten."""
        _, key = heapq.heappop(self._heap)
        del self._moments[key]
        return key

    def forget(self, key: str) -> None:
        self._moments.pop(key, None)
