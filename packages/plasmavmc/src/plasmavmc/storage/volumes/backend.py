"""Port: where volumes and their snapshots live.

A volume is a raw block device with an id, handed to a VMM as an open descriptor, never as a path. What is in it a guest
wrote: no driver looks at it. A snapshot is a volume as it was, under an id of its own. Making, growing and removing are
idempotent where `volumes.Volumes` says so; a driver itself is plain: what exists already is a conflict, what does not is
not found, and who removes what is gone is content. Everything is on the disk when a call returns, and nothing is half
there after a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Fill = Callable[[int], None]
"""Writes the first content of a new, empty file; blocking. Raises `OSError`."""


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    snapshot_id: str
    size_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class StoredVolume:
    volume_id: str
    size_bytes: int
    """Of what is stored; where it is sealed that is a little more than its user sees."""
    used_bytes: int
    """Of the host's disk; blocks that are shared count for each who shares them."""
    sealed: bool
    """What is stored is ciphertext, by a header of its own (LUKS)."""
    snapshots: tuple[StoredSnapshot, ...] = ()
    """By id."""


class VolumeDriver(Protocol):
    """Raises `CapacityError` (`disk-full`) where there is no room, `HostError` (`storage-error`) for what the file system
    refuses, `InvalidSpecError` for what is no id. Of two callers at once for one volume the caller takes care."""

    @property
    def name(self) -> str: ...

    @property
    def at_once(self) -> bool:
        """A snapshot is of one moment, also while a VM writes. False: nobody may write while one is taken."""

    async def create(self, volume_id: str, size_bytes: int, fill: Fill, *, sealed: bool = False) -> None:
        """Make a volume. `ConflictError`: `volume-exists`."""

    async def clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        """Make a volume of what a snapshot holds, grown to this size. `NotFoundError`: `snapshot-not-found`;
        `ConflictError`: `volume-exists`."""

    async def open(self, volume_id: str) -> int:
        """A read-write descriptor, owned by the caller. `NotFoundError`: `volume-not-found`."""

    async def open_snapshot(self, snapshot_id: str) -> int:
        """A read-only descriptor of what a snapshot holds, owned by the caller; holes are known where the host knows them
        (lseek(2), SEEK_DATA). `NotFoundError`: `snapshot-not-found`."""

    async def resize(self, volume_id: str, size_bytes: int) -> None:
        """Grow a volume; one that is as large or larger is left alone. `NotFoundError`: `volume-not-found`."""

    async def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Keep a volume as it is now. `NotFoundError`: `volume-not-found`; `ConflictError`: `snapshot-exists`."""

    async def restore(self, volume_id: str, snapshot_id: str) -> None:
        """Make a volume what it was; it keeps its size, and its snapshots. Nobody has it open. `NotFoundError`:
        `volume-not-found`, `snapshot-not-found` (also where it is another volume's)."""

    async def delete(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        """Remove a volume; or with all of its snapshots at once, so that after a crash they are all there, or none of them.
        Unknown ids are fine. `ConflictError`: `volume-has-snapshots`."""

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot. Unknown ids are fine. `ConflictError`: `snapshot-has-clones`, where volumes that began with it
        still need it."""

    async def find(self, volume_id: str) -> StoredVolume | None:
        """A volume as it is now; None where there is none."""

    async def origin(self, snapshot_id: str) -> StoredVolume | None:
        """The volume that a snapshot is of; None where there is no such snapshot."""

    async def volumes(self) -> tuple[StoredVolume, ...]:
        """All that there is, by id."""

    async def free_bytes(self) -> int:
        """Room left."""


@runtime_checkable
class SendReceive(Protocol):
    """Of drivers that take snapshots made on another node (`storage.volumes.transfer`). Errors as `VolumeDriver`."""

    async def receive(
        self, volume_id: str, snapshot_id: str, size_bytes: int, fill: Fill, *, sealed: bool, since: str
    ) -> None:
        """Keep a snapshot of this size under this id: what `since` holds with what `fill` writes over it. Without `since`,
        what `fill` writes, and a new volume that is the same. Else `since` is the youngest of the volume, and what the
        volume itself holds is given up until it is restored. Where `fill` fails there is neither snapshot nor new volume.

        `NotFoundError`: `volume-not-found`; `snapshot-not-found`, also where `since` is another volume's. `ConflictError`:
        `volume-exists`, `snapshot-exists`."""
