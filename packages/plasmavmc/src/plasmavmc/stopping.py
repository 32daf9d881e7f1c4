"""A VM's stop: its workload is asked to end and given its time, before its VMM is ended.

Theory. There is one stop of a VM, from the first order on. The time that the first gave is kept, and begins when the guest
is told: a later order may bring the end nearer, and never puts it off. The guest's init has a clock of its own for the
first order's time; of a shorter one it learns when that is over, by being told to kill the workload.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

from plasmavmc.deadlines import Deadline, until, within
from plasmavmc.errors import PlasmaError
from plasmavmc.guest.api import GuestChannel
from plasmavmc.images.store import ImageStore
from plasmavmc.types import VmSpec

EXIT_GRACE_S = 5.0
"""From the guest's last word (or its silence) to the end of the VMM."""
ASK_S = 5.0
"""For a guest to take an order: it may not read any more."""
KILL = "SIGKILL"
USUAL_SIGNAL = "SIGTERM"


def stop_signal(spec: VmSpec, images: ImageStore) -> str:
    """What its workload is asked to end by: as its specification says, or its image, or what is usual."""
    if spec.stop_signal is not None:
        return spec.stop_signal
    with suppress(PlasmaError, OSError):  # what its image says cannot be had
        config = images.config_of(spec.image)
        return USUAL_SIGNAL if config is None else config.stop_signal
    return USUAL_SIGNAL


class Stop:
    """See the module's head."""

    def __init__(self, grace_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._grace_s = grace_s
        self._by = math.inf
        """The moment at which its time is over, as far as it is known yet."""
        self._told = False
        self._grace: Deadline | None = None
        self._hurried = False

    def hurry(self, grace_s: float) -> None:
        """It was ordered again, with this grace."""
        by = self._loop.time() + grace_s
        if by >= self._by:
            return
        self._by, self._hurried = by, self._told
        if self._grace is not None and not self._grace.expired():
            self._grace.reschedule(by)

    async def carry_out(self, channel: GuestChannel, signal: str, ended: asyncio.Event) -> None:
        """Return when the VM has ended, or its time is over and its VMM is to be ended. A guest that cannot be asked has no
        time."""
        now, self._told = self._loop.time(), True
        self._by = min(self._by, now + self._grace_s)
        with suppress(PlasmaError, TimeoutError):
            await _order(channel, signal, max(0.0, self._by - now))
            await self._wait(ended)
            if self._hurried and not ended.is_set():
                await _order(channel, KILL, 0)
            async with within(EXIT_GRACE_S):
                await ended.wait()

    async def _wait(self, ended: asyncio.Event) -> None:
        try:
            async with until(self._by) as self._grace:
                await ended.wait()
        except TimeoutError:
            pass
        finally:
            self._grace = None


async def _order(channel: GuestChannel, signal: str, grace_s: float) -> None:
    async with within(ASK_S):
        await channel.stop(signal, grace_s)
