"""How much of something one caller may have at once, and all of them together: so that nobody takes what others need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from plasmavmc.errors import CapacityError


class Shares:
    """So many of `what` at once: `each` for one caller, `most` for all. Who wants more is refused, not kept waiting: whoever
    waits holds something, too."""

    def __init__(self, what: str, *, each: int, most: int) -> None:
        self._what = what
        self._each = each
        self._most = most
        self._taken: dict[str, int] = {}

    def take(self, who: str) -> Callable[[], None]:
        """Let `who` have one more, until what is returned is called.

        Raises:
            CapacityError: `too-many`, its share is used up, or there are no more at all.
        """
        own = self._taken.get(who, 0)
        if own >= self._each:
            raise _used_up(f"you have {own} {self._what} at once, which is as many as one caller may have")
        if sum(self._taken.values()) >= self._most:
            raise _used_up(f"the server has {self._most} {self._what} at once, which is as many as it takes")
        self._taken[who] = own + 1
        return partial(self._give_back, who)

    @contextmanager
    def one(self, who: str) -> Iterator[None]:
        """As `take`, for as long as this is open."""
        give_back = self.take(who)
        try:
            yield
        finally:
            give_back()

    def _give_back(self, who: str) -> None:
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]


class Lines:
    """As `Shares`, but who has its share waits for more of it, in a line of its own, in which so many may be `waiting`."""

    def __init__(self, what: str, *, each: int, most: int, waiting: int) -> None:
        self._what = what
        self._shares = Shares(what, each=each, most=most)
        self._each = each
        self._waiting = waiting
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def one(self, who: str) -> AsyncIterator[None]:
        """Let `who` have one more within this, once it may.

        Raises:
            CapacityError: `too-many`, its line is full, or there are no more at all.
        """
        line = self._lines.setdefault(who, _Line(asyncio.Semaphore(self._each)))
        if line.length >= self._each + self._waiting:
            raise _used_up(f"{self._waiting} {self._what} of yours wait, which is as many as of one caller may")
        line.length += 1
        try:
            async with line.places:
                with self._shares.one(who):
                    yield
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[who]


@dataclass(slots=True)
class _Line:
    places: asyncio.Semaphore
    length: int = 0
    """With those that have what they waited for."""


def _used_up(words: str) -> CapacityError:
    return CapacityError("too-many", words, resolution="End some of them, or come again later.")
