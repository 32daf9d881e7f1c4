"""Work in threads: such as its caller never outruns, and such as may hang, for which nobody waits.

Trap of `asyncio.to_thread`: a cancelled caller goes on at once while the thread still works, on files that the caller now
closes, removes or hands to the next. Here cancellation waits until the thread is done; so the work must be short, or be
one that can be told to stop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, done in a thread; it has ended when this returns or raises, cancelled or not."""
    return await to_its_end(asyncio.to_thread(work, *args, **kwargs))


async def to_its_end(work: Coroutine[Any, Any, T], stop: Callable[[], None] = lambda: None) -> T:
    """The result of what nobody would come back to if it were half done; it has ended when this returns or raises, cancelled
    or not. Who is cancelled has `stop` called, by which the work may end soon."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        while not task.done():
            await _outlast(task)
        task.exception()  # seen, if there is one; the caller gets the cancellation
        raise


async def _outlast(task: asyncio.Future[T]) -> None:
    """Wait for a thread; a second cancellation changes nothing, for the first is on its way already."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        return


class DaemonThreads(Executor):
    """For `run_in_executor`: at most so many threads, each made when it is needed, and left behind when the process ends.
    Where none can be made, work waits for one that there is; where there is none at all, it fails with `RuntimeError`."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            self._unfinished += 1
            try:
                if self._threads < min(self._unfinished, self._most):
                    threading.Thread(target=self._serve, name=self._name, daemon=True).start()
                    self._threads += 1
            except RuntimeError as error:  # the system has no more for us
                if not self._threads:
                    self._unfinished -= 1
                    future.set_exception(error)
                    return future
        self._queue.put(work)
        return future

    def _serve(self) -> None:
        while True:
            self._queue.get()()
            with self._lock:
                self._unfinished -= 1
