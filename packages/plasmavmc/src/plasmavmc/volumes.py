"""The node's volumes: made, grown, kept and removed; and who has each.

Theory. Every order is idempotent by the ids in it, and orders for one volume follow each other. What is on the disk is the
driver's and is truth; what is remembered here dies with the engine: who has a volume (told again as VMs are adopted) and
the keys of sealed ones (given again by whoever keeps them: `unlock`). `volumestock` is what remembers; what
volumes hold goes in and out by `volumecontent`.

A volume has one writer. That is kept twice: VMs are entered here before they get a descriptor, and the descriptor itself is
locked (flock(2)), which a VMM inherits and holds for as long as it lives. So a VMM that an engine has forgotten still
keeps its volume.

A snapshot is what a power cut would leave: whole, by the journal of its file system. Where the driver cannot take one in a
moment, the VM stands still meanwhile; where the caller asks for more, the guest brings everything to the disk first and
lets nobody write until it is taken.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plasmavmc.errors import ConflictError, InvalidSpecError, UnavailableError
from plasmavmc.holdings import Holding, held
from plasmavmc.host.threads import in_thread
from plasmavmc.hypervisor.backend import DiskPlan
from plasmavmc.storage import luks
from plasmavmc.storage.sparse import sparse_copy
from plasmavmc.storage.volumes.backend import StoredVolume, VolumeDriver
from plasmavmc.storage.volumes.errors import snapshot_exists
from plasmavmc.types import DiskSpec, check_id
from plasmavmc.volumecontent import VolumeContent
from plasmavmc.volumestock import VolumeStock, check_key, check_same_size, check_size, locked, overhead


@dataclass(frozen=True, slots=True)
class SnapshotView:
    snapshot_id: str
    size_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class VolumeView:
    """A volume as it is now."""

    volume_id: str
    size_bytes: int
    """As its user sees it."""
    used_bytes: int
    """What it takes on the host's disk; shared blocks count for each who shares them."""
    vm_id: str
    """Who has it; the first of several that only read. Empty: nobody."""
    encrypted: bool
    snapshots: tuple[SnapshotView, ...] = ()
    locked: bool = False
    """It is encrypted, and its key is not known."""


class VolumeUser(Protocol):
    """A running VM, as its volumes need it. `disk` is the volume's place among the VM's disks."""

    async def grow(self, disk: int, size_bytes: int) -> None:
        """Its disk has this size now: the guest sees it, and grows what is on it."""

    def still(self, disk: int, *, freeze: bool, pause: bool) -> AbstractAsyncContextManager[None]:
        """For the block nothing of this VM writes to the disk; with `freeze` nothing is unwritten either. Raises at the
        block's end where that did not hold to the end."""


Reach = Callable[[str], VolumeUser | None]
"""A VM by its id; None where it does not run now."""


class Volumes:
    """See the module's head. One per engine."""

    def __init__(
        self,
        driver: VolumeDriver,
        template: Callable[[int], Awaitable[Path]],
        *,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._driver = driver
        self._template = template
        self._entropy = entropy
        self._stock = VolumeStock(driver)
        self._reach: Reach = _nobody
        self._unsure: set[str] = set()
        """Snapshots that are being taken of what a VM has, or could not be. One that has its name already may still turn out
        to be none: nobody is told of it."""
        self.holdings = self._stock.holdings
        self.content = VolumeContent(self._stock)
        """What they hold, from outside."""

    def bind(self, reach: Reach) -> None:
        """Say how the VMs are reached that have volumes."""
        self._reach = reach

    @property
    def driver(self) -> str:
        """Name of the driver in use."""
        return self._driver.name

    # Orders

    async def create(self, volume_id: str, size_bytes: int, *, key: bytes | None = None) -> None:
        """Make a volume with an empty file system; with a key what is stored is ciphertext. One that is there already with
        this size, and this key, is left alone.

        Raises:
            InvalidSpecError: `volume_id`, `size_bytes` or `key` makes no sense.
            ConflictError: `volume-exists` with another size or kind; `wrong-key`.
            CapacityError: `disk-full`.
            HostError: `storage-error`, or there is no template.
        """
        check_size(size_bytes)
        check_key(key)
        async with self._stock.alone(volume_id):
            present = await self._driver.find(volume_id)
            if present is not None:
                await self._stock.take_for_same(present, size_bytes, key)
                return
            template = await self._template(size_bytes)
            if key is None:
                await self._driver.create(volume_id, size_bytes, lambda file: _lay(template, file))
            else:
                header, master = await in_thread(luks.make_header, key, self._entropy)
                await self._driver.create(
                    volume_id,
                    size_bytes + luks.HEADER_BYTES,
                    lambda file: _lay_sealed(template, file, header, master),
                    sealed=True,
                )
                self._stock.remember(volume_id, key)

    async def clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        """Make a volume of a snapshot, of its size or larger; what is sealed stays so, under the same key. One that is
        there already with this size is left alone.

        Raises:
            InvalidSpecError: an id makes no sense; `size_bytes`, or it is less than the snapshot's.
            NotFoundError: `snapshot-not-found`.
            ConflictError: `volume-exists` with another size.
            CapacityError, HostError: as `create`.
        """
        check_size(size_bytes)
        check_id("snapshot_id", snapshot_id)
        async with self._stock.alone(volume_id):
            present = await self._driver.find(volume_id)
            if present is not None:
                check_same_size(present, size_bytes)
                return
            origin = await self._stock.origin(snapshot_id)
            least = next(each.size_bytes for each in origin.snapshots if each.snapshot_id == snapshot_id)
            if size_bytes < least - overhead(origin):
                raise InvalidSpecError(
                    "size_bytes", f"the snapshot has {least - overhead(origin)} bytes, which is more"
                )
            await self._driver.clone(snapshot_id, volume_id, size_bytes + overhead(origin))
            if (key := self._stock.key_of(origin.volume_id)) is not None:
                self._stock.remember(volume_id, key)

    async def resize(self, volume_id: str, size_bytes: int) -> None:
        """Grow a volume, also while a VM has it: then its guest sees it, and has grown its file system when this returns.

        Raises:
            NotFoundError: `volume-not-found`.
            InvalidSpecError: `size_bytes`, or it is less than now.
            ConflictError: `volume-held`, by a VM that does not run now.
            GuestError: the guest did not grow it; it does so at its next start.
            UnavailableError: `vm-busy`, a copy of a volume of its VM takes long; its guest does not see yet that it grew.
            CapacityError, HostError: as `create`.
        """
        check_size(size_bytes)
        async with self._stock.alone(volume_id):
            volume = await self._stock.existing(volume_id)
            now = volume.size_bytes - overhead(volume)
            if size_bytes < now:
                raise InvalidSpecError("size_bytes", f"volume {volume_id} has {now} bytes, and does not shrink")
            writer = self.holdings.writer(volume_id)
            user = None if writer is None else self._running(volume_id, writer)
            await self._driver.resize(volume_id, size_bytes + overhead(volume))
            if user is not None and writer is not None:
                await user.grow(writer.disk, size_bytes)

    async def snapshot(self, volume_id: str, snapshot_id: str, *, freeze: bool = False) -> None:
        """Keep a volume as it is now. With `freeze` its guest brings to it what it has not written yet, so that it is as
        after a clean end. A snapshot that is there already is left alone.

        Raises:
            NotFoundError: `volume-not-found`.
            InvalidSpecError: an id makes no sense.
            ConflictError: `snapshot-exists`, of another volume; `volume-held`, by a process of no VM that is known.
            UnavailableError: `volume-busy`, by a VM that is just starting or ending, and can neither be frozen nor stand
                still; or it was stopped meanwhile.
            GuestError: `volume-…`, the guest could not freeze it, or not for as long as it took. There is no snapshot.
            CapacityError, HostError: as `create`.
        """
        check_id("snapshot_id", snapshot_id)
        async with self._stock.alone(volume_id):
            await self._stock.existing(volume_id)
            owner = await self._driver.origin(snapshot_id)
            if owner is not None and owner.volume_id != volume_id:
                raise snapshot_exists(snapshot_id)
            if owner is not None and snapshot_id in self._unsure:
                await self._driver.delete_snapshot(snapshot_id)
                owner = None
            if owner is None:
                await self._take(volume_id, snapshot_id, freeze=freeze)
                self._unsure.discard(snapshot_id)

    async def _take(self, volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        pause, writer = not self._driver.at_once, self.holdings.writer(volume_id)
        running = writer is not None and self._reach(writer.vm_id) is not None
        if not (freeze or pause) or not (running or await self._stock.is_open(volume_id, fcntl.LOCK_SH)):
            await self._driver.snapshot(volume_id, snapshot_id)
            return
        if writer is None:
            raise held(volume_id, "", "frozen")
        user = self._reach(writer.vm_id)
        if user is None:
            raise UnavailableError(
                "volume-busy",
                f"volume {volume_id} is held by VM {writer.vm_id}, which is just starting or ending",
                resolution="Try again when it runs, or has ended.",
            )
        self._unsure.add(snapshot_id)
        try:
            async with user.still(writer.disk, freeze=freeze, pause=pause):
                await self._driver.snapshot(volume_id, snapshot_id)
        except BaseException:
            await asyncio.shield(self._driver.delete_snapshot(snapshot_id))
            self._unsure.discard(snapshot_id)
            raise

    async def restore(self, volume_id: str, snapshot_id: str) -> None:
        """Make a volume what it was. It keeps its size.

        Raises:
            NotFoundError: `volume-not-found`; `snapshot-not-found`, also where it is another volume's.
            ConflictError: `volume-held`.
            CapacityError, HostError: as `create`.
        """
        check_id("snapshot_id", snapshot_id)
        async with self._stock.alone(volume_id):
            await self._stock.existing(volume_id)
            await self._stock.check_free(volume_id, "restored")
            await self._driver.restore(volume_id, snapshot_id)

    async def delete(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        """Remove a volume, and forget its key; or with all of its snapshots at once. Unknown ids are fine.

        Raises:
            ConflictError: `volume-held`, `volume-has-snapshots`.
            HostError: as `create`.
        """
        async with self._stock.alone(volume_id):
            if await self._driver.find(volume_id) is not None:
                await self._stock.check_free(volume_id, "deleted")
                await self._driver.delete(volume_id, with_snapshots=with_snapshots)
            self._stock.forget(volume_id)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot. Unknown ids are fine.

        Raises:
            ConflictError: `snapshot-has-clones`, where the driver's clones still need it.
            HostError: as `create`.
        """
        check_id("snapshot_id", snapshot_id)
        owner = await self._driver.origin(snapshot_id)
        if owner is not None:
            async with self._stock.alone(owner.volume_id):
                await self._driver.delete_snapshot(snapshot_id)

    async def unlock(self, volume_id: str, key: bytes) -> None:
        """Give the key of a sealed volume, which is remembered until the engine ends or the volume is deleted.

        Raises:
            NotFoundError: `volume-not-found`.
            InvalidSpecError: `key`, it is none.
            ConflictError: `wrong-key`; `not-encrypted`.
        """
        check_key(key)
        async with self._stock.alone(volume_id):
            volume = await self._stock.existing(volume_id)
            if not volume.sealed:
                raise ConflictError("not-encrypted", f"volume {volume_id} is not encrypted")
            await self._stock.unlock(volume, key)

    async def list(self) -> tuple[VolumeView, ...]:
        """All volumes, by id."""
        return tuple(self._view(volume) for volume in await self._driver.volumes())

    # For VMs

    async def attach(self, disks: Sequence[DiskSpec], descriptors: ExitStack) -> tuple[DiskPlan, ...]:
        """Open volumes for a VMM that holds them, in order; `descriptors` closes what it need not keep.

        Raises:
            NotFoundError: `volume-not-found`.
            ConflictError: `volume-held`, by a process that we know nothing of; `volume-locked`, its key is not known.
            HostError: `storage-error`.
        """
        return tuple([await self._attached(disk, descriptors) for disk in disks])

    async def _attached(self, disk: DiskSpec, descriptors: ExitStack) -> DiskPlan:
        async with self._stock.alone(disk.reference):
            volume = await self._stock.existing(disk.reference)
            secret = -1
            if volume.sealed:
                secret = _secret_file(self._known_key(volume.volume_id))
                descriptors.callback(os.close, secret)
            file = await self._driver.open(volume.volume_id)
            descriptors.callback(os.close, file)
            if not locked(file, fcntl.LOCK_SH if disk.read_only else fcntl.LOCK_EX):
                raise held(volume.volume_id, "", "given to a VM")
            return DiskPlan(disk.id, file, disk.read_only, disk.limit, secret)

    # Small parts

    def _known_key(self, volume_id: str) -> bytes:
        key = self._stock.key_of(volume_id)
        if key is None:
            raise ConflictError(
                "volume-locked", f"volume {volume_id} is encrypted, and its key was not given", resolution="Unlock it."
            )
        return key

    def _running(self, volume_id: str, writer: Holding) -> VolumeUser:
        user = self._reach(writer.vm_id)
        if user is None:
            raise held(volume_id, writer.vm_id, "grown now, for that VM does not run")
        return user

    def _view(self, volume: StoredVolume) -> VolumeView:
        over = overhead(volume)
        holders = self.holdings.of(volume.volume_id)
        snapshots = (
            SnapshotView(each.snapshot_id, each.size_bytes - over, each.used_bytes)
            for each in volume.snapshots
            if each.snapshot_id not in self._unsure
        )
        return VolumeView(
            volume.volume_id,
            volume.size_bytes - over,
            volume.used_bytes,
            holders[0].vm_id if holders else "",
            volume.sealed,
            tuple(snapshots),
            volume.sealed and self._stock.key_of(volume.volume_id) is None,
        )


def _nobody(_vm_id: str) -> None:
    return None


def _lay(template: Path, file: int) -> None:
    with template.open("rb") as source:
        sparse_copy(source.fileno(), file)


def _lay_sealed(template: Path, file: int, header: bytes, master: bytes) -> None:
    with template.open("rb") as source:
        luks.lay(source.fileno(), file, header, master)


def _secret_file(key: bytes) -> int:
    """In memory alone; a memfd has no name to be opened by, and is readable to whoever is given its descriptor."""
    file = os.memfd_create("secret", os.MFD_CLOEXEC)
    os.pwrite(file, luks.passphrase(key), 0)
    return file
