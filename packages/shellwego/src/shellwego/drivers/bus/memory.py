"""The bus in memory: a bounded queue a listener; whoever falls behind loses the oldest hints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache

from shellwego.drivers.bus.listening import QUEUE_LIMIT, Listener
from shellwego.ports.bus import Hint

SUBJECTS_KEPT = 8192
"""For so many it is known who hears of them."""


@lru_cache(maxsize=8192)
def matches(pattern: str, subject: str) -> bool:
    """True where the subject fits: `*` is one word, a last `>` one or more (as in NATS)."""
    wanted, words = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        if len(words) <= len(wanted):
            return False
        words = words[: len(wanted)]
    return len(wanted) == len(words) and all(want in ("*", word) for want, word in zip(wanted, words, strict=True))


class MemoryBus:
    """See `ports.bus.Bus`."""

    def __init__(self, queue_limit: int = QUEUE_LIMIT) -> None:
        self._limit = queue_limit
        self._listeners: list[Listener] = []
        self._hearing: dict[str, tuple[Listener, ...]] = {}
        """Those that hear of a subject, since somebody came or went last."""
        self._closed = False

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        hint, hearing = Hint(subject, payload), self._hearing.get(subject)
        if hearing is None:
            if len(self._hearing) >= SUBJECTS_KEPT:
                self._hearing.clear()
            hearing = tuple(listener for listener in self._listeners if matches(listener.pattern, subject))
            self._hearing[subject] = hearing
        for listener in hearing:
            listener.put(hint)

    @asynccontextmanager
    async def subscribe(self, pattern: str) -> AsyncIterator[AsyncIterator[Hint]]:
        listener = Listener(pattern, self._limit)
        if self._closed:
            listener.close()
        self._listeners.append(listener)
        self._hearing.clear()
        try:
            yield listener.hints()
        finally:
            self._listeners.remove(listener)
            self._hearing.clear()
            listener.close()

    async def close(self) -> None:
        self._closed = True
        for listener in self._listeners:
            listener.close()
