"""Cancelling tasks, and waiting for their end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def cancel_all(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they are gone; what they raise is theirs alone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def to_its_end(work: Awaitable[T]) -> T:
    """The result of what must not be left half done, such as what a thread does; it has ended when this returns or raises,
    cancelled or not."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            await _outlast(task)
        raise


async def _outlast(task: asyncio.Future[T]) -> None:
    """Wait; a second cancellation changes nothing, for the first is on its way already."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        return
