"""Port: what an agent needs of an engine that keeps volumes, in the platform's words. An extra ability of an engine.

All are idempotent by id and return when they are done: what is there already, as it was asked for, is left alone. A volume
is a raw block device; its file system is made and grown by the guest.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from shellwego.core.volumes import SnapshotView, VolumeView

__all__ = ["SnapshotView", "VolumeEngine", "VolumeView"]


@runtime_checkable
class VolumeEngine(Protocol):
    """Raises core errors: `NotFoundError` (no such volume or snapshot), `ConflictError` (`volume-held`: a VM has it;
    `volume-exists`: with another size; `snapshot-has-clones`), `UnavailableError` (no room, or the host fails)."""

    async def volumes(self) -> tuple[VolumeView, ...]:
        """All volumes, asked of the host. One is held by a VM until that has ended."""

    async def create_volume(self, volume_id: str, size_bytes: int) -> None:
        """Make an empty one."""

    async def clone_volume(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        """Make one that begins as a copy of a snapshot, at least as large."""

    async def resize_volume(self, volume_id: str, size_bytes: int) -> None:
        """Make it larger, also while a VM has it. A smaller size changes nothing."""

    async def snapshot_volume(self, volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        """Keep what it holds at this moment: as after a power cut, or with the guest's file system at rest (`freeze`)."""

    async def restore_volume(self, volume_id: str, snapshot_id: str) -> None:
        """Put it back to what it was then, while no VM has it. What was written since is gone."""

    async def delete_volume(self, volume_id: str) -> None:
        """Destroy it with its snapshots, while no VM has it. One that is not there is no error."""

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Destroy a snapshot of which no volume is a clone. One that is not there is no error."""
