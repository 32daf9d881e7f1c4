"""A running VM, as its volumes see it: its VMM for the disk, its guest for what is on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from plasmavmc.errors import ConflictError, GuestError
from plasmavmc.guest.api import GuestChannel, VolumeChannel
from plasmavmc.hypervisor.backend import Growing, HypervisorBackend, Pausable
from plasmavmc.types import VmHandle


@dataclass(frozen=True, slots=True)
class RunningVm:
    """Implements `volumes.VolumeUser`."""

    handle: VmHandle
    backend: HypervisorBackend
    channel: GuestChannel

    async def grow(self, disk: int, size_bytes: int) -> None:
        """Its disk has this size now: the VMM is told, then the guest.

        Raises:
            ConflictError: `cannot-grow`, its backend cannot.
            GuestError: `volume-…`, the guest could not.
            HostError, UnavailableError: the VMM did not.
        """
        if not isinstance(self.backend, Growing):
            raise self._cannot("cannot-grow", "have a disk grow while it runs")
        await self.backend.grow_disk(self.handle, disk, size_bytes)
        await self._guest().grow_volume(disk, size_bytes)

    @asynccontextmanager
    async def still(self, disk: int, *, freeze: bool, pause: bool) -> AsyncIterator[None]:
        """For the block nothing of this VM writes to the disk; with `freeze` nothing is unwritten either.

        Raises:
            ConflictError: `cannot-freeze`, its backend cannot.
            GuestError: `volume-…`, the guest could not, or (at the block's end) had to write again before it.
            HostError, UnavailableError: the VMM did not stand still.
        """
        async with AsyncExitStack() as undo:
            if freeze:
                guest = self._guest()
                await guest.freeze_volume(disk)
                undo.push_async_callback(guest.thaw_volume, disk)
            if pause:
                if not isinstance(self.backend, Pausable):
                    raise self._cannot("cannot-freeze", "stand still")
                await self.backend.pause_vm(self.handle)
                undo.push_async_callback(self.backend.unpause_vm, self.handle)
            yield

    def _guest(self) -> VolumeChannel:
        if not isinstance(self.channel, VolumeChannel):
            raise GuestError("volume-unknown", "the guest knows nothing of volumes", resolution="Start the VM anew.")
        return self.channel

    def _cannot(self, code: str, what: str) -> ConflictError:
        return ConflictError(code, f"a VM of the backend {self.handle.backend} cannot {what}")
