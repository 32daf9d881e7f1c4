"""Several awaitable jobs at once, a few at a time, with one plain error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def fan_out(work: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int) -> tuple[R, ...]:
    """`work` for each item; results in the order of the items. The first failure ends the others, and is raised."""
    slots = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with slots:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tuple(task.result() for task in tasks)
