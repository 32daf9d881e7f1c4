"""Work that its caller never outruns, in a thread above all.

Trap of `asyncio.to_thread`: a cancelled caller goes on at once while the thread still works, on files that the caller now
closes, removes or hands to the next. Here cancellation waits until the thread is done; so the work must be short, or be
one that can be told to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
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
