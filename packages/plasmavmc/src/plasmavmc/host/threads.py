"""Blocking work in a thread that its caller never outruns.

Trap of `asyncio.to_thread`: a cancelled caller goes on at once while the thread still works, on files that the caller now
closes, removes or hands to the next. Here cancellation waits until the thread is done; so the work must be short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, done in a thread; it has ended when this returns or raises, cancelled or not."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
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
