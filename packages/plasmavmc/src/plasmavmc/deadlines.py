"""Deadlines that hold also where a task that was cancelled clears up.

Trap of `asyncio.timeout` before Python 3.11.3 (Debian 12 has 3.11.2): it tells that it is over only in a task that nobody
has ever asked to end. In one that was cancelled and now undoes what it did, it leaves as a cancellation, which passes
whoever waits for `TimeoutError`, and cuts short how it is undone: a VMM that does not answer would not be killed. So nothing
of the engine uses it directly.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadline:
    """For a block, as `asyncio.timeout`. Made by `within` and `until`."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self._timeout = timeout
        self._task: asyncio.Task[object] | None = None
        self._asked_before = 0
        """How often the task had been asked to end when the block began."""

    def expired(self) -> bool:
        """It was over before the block was."""
        return self._timeout.expired()

    def reschedule(self, when: float) -> None:
        """Put it to another moment of the event loop's clock."""
        self._timeout.reschedule(when)

    async def __aenter__(self) -> Deadline:
        self._task = asyncio.current_task()
        self._asked_before = self._task.cancelling() if self._task is not None else 0
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)
        if self._timeout.expired() and isinstance(error, asyncio.CancelledError) and self._nobody_else_asked():
            raise TimeoutError from error

    def _nobody_else_asked(self) -> bool:
        return self._task is not None and self._task.cancelling() <= self._asked_before


def within(seconds: float | None) -> Deadline:
    """The block must be over after so many seconds; None: whenever.

    Raises:
        TimeoutError: from the block, which is cancelled then.
    """
    return Deadline(asyncio.timeout(seconds))


def until(when: float) -> Deadline:
    """The block must be over at a moment of the event loop's clock; as `within`."""
    return Deadline(asyncio.timeout_at(when))
