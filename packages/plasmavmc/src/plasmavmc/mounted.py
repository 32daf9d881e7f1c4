"""A running VM, as its volumes see it: its VMM for the disk, its guest for what is on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from plasmavmc.errors import ConflictError, GuestError, UnavailableError
from plasmavmc.guest.api import GuestChannel, VolumeChannel
from plasmavmc.hypervisor.backend import Growing, HypervisorBackend, Pausable
from plasmavmc.stillness import TURN_S, Stillness
from plasmavmc.types import VmHandle


@dataclass(frozen=True, slots=True)
class RunningVm:
    """Implements `volumes.VolumeUser`."""

    handle: VmHandle
    backend: HypervisorBackend
    channel: GuestChannel
    stillness: Stillness
    runs: Callable[[], bool]
    """It still does, and is reached as it was."""

    async def grow(self, disk: int, size_bytes: int) -> None:
        """Its disk has this size now: the VMM is told, then the guest.

        Raises:
            ConflictError: `cannot-grow`, its backend cannot.
            GuestError: `volume-…`, the guest could not.
            HostError, UnavailableError: the VMM did not; `volume-busy`, it has ended; `vm-busy`, a copy of a volume of it
                takes long.
        """
        if not isinstance(self.backend, Growing):
            raise self._cannot("cannot-grow", "have a disk grow while it runs")
        async with self._turn(TURN_S):
            await self.backend.grow_disk(self.handle, disk, size_bytes)
            await self._guest().grow_volume(disk, size_bytes)

    @asynccontextmanager
    async def still(self, disk: int, *, freeze: bool, pause: bool) -> AsyncIterator[None]:
        """For the block nothing of this VM writes to the disk; with `freeze` nothing is unwritten either. Waits until nobody
        else has the VM stand still.

        Raises:
            ConflictError: `cannot-freeze`, its backend cannot.
            GuestError: `volume-…`, the guest could not, or (at the block's end) had to write again before it.
            UnavailableError: `volume-busy`, the VM has ended or sleeps, or (at the block's end) was stopped meanwhile.
            HostError, UnavailableError: the VMM did not stand still.
        """
        async with self._turn(), AsyncExitStack() as undo:
            if freeze:
                guest = self._guest()
                await guest.freeze_volume(disk)
                undo.push_async_callback(guest.thaw_volume, disk)
            if pause:
                if not isinstance(self.backend, Pausable):
                    raise self._cannot("cannot-freeze", "stand still")
                await undo.enter_async_context(self.stillness.paused(self.backend, self.handle))
            yield

    @asynccontextmanager
    async def _turn(self, within_s: float | None = None) -> AsyncIterator[None]:
        async with self.stillness.turn(within_s):
            if not self.runs():
                raise UnavailableError(
                    "volume-busy",
                    f"VM {self.handle.vm_id} does not run any more as it did when this was asked for",
                    resolution="Try again when it runs, or has ended.",
                )
            yield

    def _guest(self) -> VolumeChannel:
        if not isinstance(self.channel, VolumeChannel):
            raise GuestError("volume-unknown", "the guest knows nothing of volumes", resolution="Start the VM anew.")
        return self.channel

    def _cannot(self, code: str, what: str) -> ConflictError:
        return ConflictError(code, f"a VM of the backend {self.handle.backend} cannot {what}")
