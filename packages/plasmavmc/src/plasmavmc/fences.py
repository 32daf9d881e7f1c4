"""Volumes that may be used until a given moment only: those of which a copy may begin to be used on another node then.

Theory. For each such volume, whoever runs the node says until when a VM here may have it, and says so again and again.
After the last moment that was given, no VM begins with the volume, and a VM that has it is killed. The host's own
warden does that (`host.helper.fences`), since this process may be paused just then, or gone. So a VM is fenced before
it begins, and when the moment is moved, the fence of every VM that has the volume is moved with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from plasmavmc.errors import ConflictError, HostError
from plasmavmc.host.operations import Host
from plasmavmc.types import DiskSpec


class Fences:
    """Those of one engine, which begins without any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._host: Host | None = None
        self._until: Mapping[str, float] = {}
        self._fenced: set[str] = set()
        """Keys of VMs."""

    def bind(self, host: Host) -> None:
        """Say who kills."""
        self._host = host

    async def set(self, until: Mapping[str, float], vms: Iterable[tuple[str, Sequence[DiskSpec]]]) -> None:
        """These volumes, and no others, have a moment of the monotonic clock. `vms` are those that may have a process, by
        their keys, with their volumes.

        Raises:
            HostError, UnavailableError: the host cannot.
        """
        self._until = dict(until)
        for key, volumes in vms:
            try:
                await self._fence(key, volumes)
            except HostError as error:
                if error.code != "fenced":  # its time was over: it is being killed, and cannot be spared any more
                    raise

    async def arm(self, key: str, volumes: Sequence[DiskSpec]) -> None:
        """Fence a VM that is about to begin.

        Raises:
            ConflictError: `volume-fenced`, the time of a volume is over.
        """
        now = self._clock()
        over = [disk.reference for disk in volumes if self._until.get(disk.reference, math.inf) <= now]
        if over:
            raise ConflictError("volume-fenced", f"the time for which VMs here may have {', '.join(over)} is over")
        await self._fence(key, volumes)

    def is_over(self, volumes: Sequence[DiskSpec]) -> bool:
        """Whether a VM may not have one of these any more."""
        moment = self._moment(volumes)
        return moment is not None and moment <= self._clock()

    async def lift(self, key: str) -> None:
        """A VM has ended, or will not begin."""
        if key in self._fenced and self._host is not None:
            self._fenced.discard(key)
            await self._host.vm_fence(key, None)

    async def _fence(self, key: str, volumes: Sequence[DiskSpec]) -> None:
        moment = self._moment(volumes)
        if moment is None:
            await self.lift(key)
        elif self._host is not None:
            self._fenced.add(key)
            await self._host.vm_fence(key, moment)

    def _moment(self, volumes: Sequence[DiskSpec]) -> float | None:
        return min((self._until[disk.reference] for disk in volumes if disk.reference in self._until), default=None)
