"""Turns: who may use what all owners share a few places of. Pure.

Theory. Whoever asks waits in the line of his owner. A place that is free goes to the owner who holds the fewest, and among
equals to the one whose turn was longest ago, or who came first; within an owner's line the first is first. So how long one
waits hangs on how many owners there are, and not on how much another one has waiting. No owner holds more than his share, so
one whose turns last long leaves places to the others.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """`places` in all, of which one owner holds at most `share`."""

    def __init__(self, places: int, share: int) -> None:
        self._free = places
        self._share = share
        self._lines: dict[str, deque[T]] = {}
        """Of the owners who wait, the one whose turn was longest ago first."""
        self._held: Counter[str] = Counter()

    def ask(self, owner: str, who: T) -> None:
        """Wait for a turn."""
        self._lines.setdefault(owner, deque()).append(who)

    def withdraw(self, owner: str, who: T) -> None:
        """Wait no more.

        Raises:
            ValueError: it does not wait.
        """
        line = self._lines.get(owner, deque())
        line.remove(who)
        if not line:
            del self._lines[owner]

    def take(self) -> T | None:
        """Whose turn it is, who has it from now on; None: nobody's."""
        waiting = [owner for owner in self._lines if self._held[owner] < self._share]
        if not self._free or not waiting:
            return None
        owner = min(waiting, key=lambda each: self._held[each])  # the first of several
        line = self._lines.pop(owner)
        taken = line.popleft()
        if line:
            self._lines[owner] = line
        self._held[owner] += 1
        self._free -= 1
        return taken

    def end(self, owner: str) -> None:
        """Give a place back."""
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
