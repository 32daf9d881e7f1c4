"""A store with threads, for virtual time: each call is over before anybody else can run, so no time passes in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shellwego.ports.store import Store, Transaction

T = TypeVar("T")
_LONGEST_S = 60.0


class BlockingStore:
    """Any store, on an event loop of its own in a thread; the caller's loop stands still meanwhile."""

    def __init__(self, make: Callable[[], Store]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._store = self._wait(_called(make))

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        return self._wait(self._store.transact(fn))

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return self._wait(self._store.read(fn))

    async def close(self) -> None:
        self._wait(self._store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LONGEST_S)
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_LONGEST_S)


async def _called(make: Callable[[], T]) -> T:
    """On the loop that the store is to live on."""
    return make()
