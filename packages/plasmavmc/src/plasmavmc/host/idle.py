"""Something made ahead for the next start of a VM, when the host is idle.

Theory. Making it takes as much time as it saves the start. So it is made a while after the last start, when that VM has
had the processors, and never while one start follows another. A start that finds nothing made ahead is an ordinary one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from plasmavmc.errors import PlasmaError

IDLE_S = 0.25
"""After the last start."""

log = structlog.get_logger("plasmavmc.idle")


class WhenIdle:
    """Has `make` called when nothing was started for `idle_s`, and again after each time that it says so."""

    def __init__(self, what: str, idle_s: float = IDLE_S) -> None:
        self._what = what
        self._idle_s = idle_s
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def later(self, make: Callable[[], Awaitable[bool]]) -> None:
        """Call it when the host is idle; what was planned before is forgotten."""
        self.put_off()
        if not self._over:
            self._task = asyncio.create_task(self._make(make), name=self._what)

    def put_off(self) -> None:
        """Call nothing until `later` is called again. What waits already is the host's."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def end(self) -> None:
        """Call nothing any more."""
        self._over = True
        self.put_off()

    async def _make(self, make: Callable[[], Awaitable[bool]]) -> None:
        more = True
        while more:
            await asyncio.sleep(self._idle_s)
            try:
                more = await make()
            except PlasmaError as error:  # the next start goes the long way, and says what is wrong with it
                log.info("idle.not_made", what=self._what, reason=str(error))
                return
