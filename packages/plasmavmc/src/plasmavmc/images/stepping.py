"""Slow synchronous work beside the event loop, in steps.

A generator does the work and yields what it has so far; each step runs in a thread. So the loop never stalls, the work
needs no locks, and a caller that gives up stops it at the next step: then the generator is closed, and its own
`finally` clauses put away what it holds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import TypeVar

from plasmavmc.host.threads import in_thread

T = TypeVar("T")


async def stepwise(work: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """The values of a generator, each made in a thread. Close it (`aclosing`) where it may be left early."""
    try:
        while values := await in_thread(_advance, work):
            yield values[0]
    finally:
        work.close()


def _advance(work: Generator[T, None, None]) -> tuple[T, ...]:
    """The next value in a tuple, or the empty tuple at the end: StopIteration cannot cross a future."""
    for value in work:
        return (value,)
    return ()


@asynccontextmanager
async def reading(chunks: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Let go of what a stream holds (a connection, a file) when its reader leaves early."""
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
