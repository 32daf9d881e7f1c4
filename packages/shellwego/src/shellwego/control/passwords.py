"""Hashing outside transactions and off the event loop, so many at once and so many waiting.

Each hash takes a tenth of a second of a core and 64 MiB: without a bound, strangers who sign in would take the machine. Who
comes when the queue is full is told to come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shellwego.core.errors import UnavailableError
from shellwego.ports.passwords import PasswordHasher

T = TypeVar("T")

AT_ONCE = 2
WAITING = 32


class Passwords:
    """A hasher behind a bounded queue."""

    def __init__(self, hasher: PasswordHasher) -> None:
        self._hasher = hasher
        self._held = 0
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="passwords")
        self._decoy = ""

    def close(self) -> None:
        """Give the threads back."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """Raises `UnavailableError` where too many wait."""
        return await self._run(lambda: self._hasher.hash(password))

    async def matches(self, password: str, hashed: str) -> bool:
        """Whether the hash is of this password. An empty hash matches nothing, in the same time: it is compared with a
        decoy. Raises `UnavailableError` where too many wait."""
        return await self._run(lambda: self._matches(password, hashed))

    def is_outdated(self, hashed: str) -> bool:
        """Whether it should be hashed anew."""
        return self._hasher.is_outdated(hashed)

    def _matches(self, password: str, hashed: str) -> bool:
        self._decoy = self._decoy or self._hasher.hash("nobody's")
        matched = self._hasher.matches(password, hashed or self._decoy)
        return matched and bool(hashed)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._held >= AT_ONCE + WAITING:
            raise UnavailableError("busy", "too many sign in at once", resolution="Try again in a second.")
        self._held += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._held -= 1
