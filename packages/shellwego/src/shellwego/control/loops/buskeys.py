"""The loop that tells the bus whom to shut out. One server does it, since the bus itself knows no compare-and-set.

It is told what is new at once, and all of it now and then, which mends a bus that was set up anew or lost its memory.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import structlog

from shellwego.control.buskeys import forget_ended, revoked
from shellwego.control.events import changes
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.tries import Tries
from shellwego.control.unit import Control
from shellwego.ports.busaccess import BusAccess
from shellwego.wire import subjects

LOOK_AGAIN_S = 5.0
TELL_AGAIN_S = 300.0
BATCH = 100

_log = structlog.get_logger(__name__)


async def run(control: Control, access: BusAccess, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "bus-keys", holder, lambda fenced: Shutter(fenced, access).run)


@dataclass(slots=True)
class Shutter:
    """One holder's work."""

    control: Control
    access: BusAccess
    _told: dict[str, float] = field(default_factory=dict)
    _due: float = 0.0
    """When all of it is told again."""

    async def run(self) -> None:
        """Look at every hint and on a timer, for ever."""
        tries = Tries(self.control.clock, _log, "bus_keys.not_told", "bus_keys.told_again")
        async with contextlib.aclosing(changes(self.control, subjects.BUS_KEYS, LOOK_AGAIN_S)) as ticks:
            async for _ in ticks:
                with tries.tried():
                    await self.step(self.control.clock.monotonic())

    async def step(self, now: float) -> None:
        """Tell what is not told; raises what `BusAccess.revoke` raises."""
        wanted = await self.control.read(revoked)
        if wanted != self._told or now >= self._due:
            if wanted:
                await self.access.revoke(wanted)
            self._told, self._due = wanted, now + TELL_AGAIN_S
            await self.control.commit(lambda unit: forget_ended(unit, BATCH))
