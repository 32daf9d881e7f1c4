"""Volumes of the memory engine: what a volume holds is a text, which a test writes and reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shellwego.core.errors import ConflictError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.volumes import SnapshotView, VolumeView

BLOCK = 4096


@dataclass(slots=True)
class MemoryVolume:
    size_bytes: int
    holds: str = ""
    source: str = ""
    """The snapshot that it is a clone of."""
    snapshots: dict[str, str] = field(default_factory=dict)
    """What it held when each was taken."""


class MemoryVolumes:
    """The volumes of one host. Fault: `fails_with`, which the next calls meet while it is set."""

    def __init__(self, disk_bytes: int, holders: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """`holders`: the volumes that VMs have now, each with its VM."""
        self._disk_bytes = disk_bytes
        self._holders = holders
        self.kept: dict[str, MemoryVolume] = {}
        self.fails_with: ShellWeGoError | None = None

    def views(self) -> tuple[VolumeView, ...]:
        held = dict(self._holders())
        return tuple(
            VolumeView(
                volume_id=id_,
                size_bytes=volume.size_bytes,
                used_bytes=BLOCK * (1 + len(volume.snapshots)),
                vm_id=held.get(id_, ""),
                snapshots=tuple(SnapshotView(snapshot_id=each, used_bytes=BLOCK) for each in volume.snapshots),
            )
            for id_, volume in self.kept.items()
        )

    def create(self, volume_id: str, size_bytes: int, *, holds: str = "", source: str = "") -> None:
        self._may_fail()
        known = self.kept.get(volume_id)
        if known is None:
            self._need_room(size_bytes)
            self.kept[volume_id] = MemoryVolume(size_bytes, holds, source)
        elif known.size_bytes != size_bytes:
            raise ConflictError("volume-exists", f"there is a volume {volume_id} of another size")

    def clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        self._may_fail()
        if volume_id not in self.kept:
            source = self._of_snapshot(snapshot_id)
            size = max(size_bytes, source.size_bytes)
            self.create(volume_id, size, holds=source.snapshots[snapshot_id], source=snapshot_id)

    def resize(self, volume_id: str, size_bytes: int) -> None:
        self._may_fail()
        volume = self._find(volume_id)
        self._need_room(max(size_bytes - volume.size_bytes, 0))
        volume.size_bytes = max(size_bytes, volume.size_bytes)

    def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        self._may_fail()
        volume = self._find(volume_id)
        volume.snapshots.setdefault(snapshot_id, volume.holds)

    def restore(self, volume_id: str, snapshot_id: str) -> None:
        self._may_fail()
        volume = self._free(volume_id)
        if snapshot_id not in volume.snapshots:
            raise NotFoundError("snapshot-not-found", f"the volume {volume_id} has no snapshot {snapshot_id}")
        volume.holds = volume.snapshots[snapshot_id]

    def delete(self, volume_id: str) -> None:
        self._may_fail()
        if volume_id not in self.kept:
            return
        for snapshot_id in self._free(volume_id).snapshots:
            self._need_no_clones(snapshot_id)
        del self.kept[volume_id]

    def delete_snapshot(self, snapshot_id: str) -> None:
        self._may_fail()
        self._need_no_clones(snapshot_id)
        for volume in self.kept.values():
            volume.snapshots.pop(snapshot_id, None)

    def take(self, volume_id: str, vm_id: str) -> None:
        """Refuse a VM a volume that is not there, or that another one has."""
        self._find(volume_id)
        holder = dict(self._holders()).get(volume_id, vm_id)
        if holder != vm_id:
            raise ConflictError("volume-held", f"the volume {volume_id} is held by the VM {holder}")

    def _may_fail(self) -> None:
        if self.fails_with is not None:
            raise self.fails_with

    def _find(self, volume_id: str) -> MemoryVolume:
        if volume_id not in self.kept:
            raise NotFoundError("volume-not-found", f"there is no volume {volume_id}")
        return self.kept[volume_id]

    def _free(self, volume_id: str) -> MemoryVolume:
        self.take(volume_id, "")
        return self._find(volume_id)

    def _of_snapshot(self, snapshot_id: str) -> MemoryVolume:
        for volume in self.kept.values():
            if snapshot_id in volume.snapshots:
                return volume
        raise NotFoundError("snapshot-not-found", f"there is no snapshot {snapshot_id}")

    def _need_no_clones(self, snapshot_id: str) -> None:
        clones = sorted(id_ for id_, volume in self.kept.items() if volume.source == snapshot_id)
        if clones:
            raise ConflictError("snapshot-has-clones", f"{', '.join(clones)} began as a copy of {snapshot_id}")

    def _need_room(self, more: int) -> None:
        if sum(volume.size_bytes for volume in self.kept.values()) + more > self._disk_bytes:
            raise UnavailableError("no-room", "the host has no room for so large a volume")
