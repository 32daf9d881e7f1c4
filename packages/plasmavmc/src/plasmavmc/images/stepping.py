"""Slow synchronous work beside the event loop, in steps.

A generator does the work and yields what it has so far; each step runs in a thread. So the loop never stalls, the work
needs no locks, and a caller that gives up stops it at the next step: then the generator is closed, and its own
`finally` clauses put away what it holds. Trap: a generator must not be closed while a thread runs it, so leaving waits
for the running step; steps are therefore short.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

T = TypeVar("T")


async def stepwise(work: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """The values of a generator, each made in a thread. Close it (`aclosing`) where it may be left early."""
    step: asyncio.Future[tuple[T, ...]] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(_advance, work))
            values = await asyncio.shield(step)
            if not values:
                return
            yield values[0]
    finally:
        if step is not None:
            await asyncio.wait({step})
        work.close()


def _advance(work: Generator[T, None, None]) -> tuple[T, ...]:
    """The next value in a tuple, or the empty tuple at the end: StopIteration cannot cross a future."""
    for value in work:
        return (value,)
    return ()
