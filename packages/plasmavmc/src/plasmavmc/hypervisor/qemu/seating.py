"""A seat for the next VMM, made when there is peace.

Theory. A process that waits to become a VMM (`Host.seat_make`) saves a start some 30 ms, and takes as much to make: so it is
made a while after the last start, when its VM has had the processors, and never while starts follow each other. A start that
finds none is an ordinary one.
"""

from __future__ import annotations

import asyncio

import structlog

from plasmavmc.errors import PlasmaError
from plasmavmc.host.operations import Host

PEACE_S = 1.0
"""After the last start."""

log = structlog.get_logger("plasmavmc.seating")


class Seating:
    """Has one seat made when nothing was started for `peace_s`."""

    def __init__(self, host: Host, peace_s: float = PEACE_S) -> None:
        self._host = host
        self._peace_s = peace_s
        self._task: asyncio.Task[None] | None = None

    def later(self, *, kvm: bool) -> None:
        """Make one when there is peace; what was planned before is forgotten."""
        self.put_off()
        self._task = asyncio.create_task(self._make(kvm), name="seat")

    def put_off(self) -> None:
        """Make none until `later` is called again. One that waits already is the host's."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _make(self, kvm: bool) -> None:
        await asyncio.sleep(self._peace_s)
        try:
            await self._host.seat_make(kvm=kvm)
        except PlasmaError as error:  # the next start goes the long way, and says what is wrong with it
            log.info("seat.not_made", reason=str(error))
