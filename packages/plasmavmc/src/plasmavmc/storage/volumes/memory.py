"""Driver `memory`: volumes in anonymous memory (memfd_create(2)). For tests and simulation; a VMM can use its
descriptors."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from plasmavmc.errors import CapacityError
from plasmavmc.host.threads import in_thread
from plasmavmc.storage.sparse import sparse_copy
from plasmavmc.storage.volumes.backend import Fill, StoredSnapshot, StoredVolume
from plasmavmc.storage.volumes.errors import (
    has_snapshots,
    no_snapshot,
    no_volume,
    snapshot_exists,
    volume_errors,
    volume_exists,
)
from plasmavmc.types import GIB, check_id

_STAT_BLOCK = 512


@dataclass(slots=True)
class _Volume:
    file: int
    sealed: bool
    snapshots: dict[str, int] = field(default_factory=dict)


class MemoryVolumes:
    """`VolumeDriver` that forgets everything with the process. `capacity_bytes` bounds what is written by it."""

    def __init__(self, capacity_bytes: int = GIB) -> None:
        self._capacity = capacity_bytes
        self._volumes: dict[str, _Volume] = {}

    @property
    def name(self) -> str:
        return "memory"

    @property
    def at_once(self) -> bool:
        return False

    async def create(self, volume_id: str, size_bytes: int, fill: Fill, *, sealed: bool = False) -> None:
        if check_id("volume_id", volume_id) in self._volumes:
            raise volume_exists(volume_id)
        with volume_errors(f"make volume {volume_id}"):
            self._volumes[volume_id] = _Volume(await in_thread(self._made, volume_id, fill, size_bytes), sealed)

    async def clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        origin = self._origin(snapshot_id)
        if origin is None:
            raise no_snapshot(snapshot_id)
        content = origin.snapshots[snapshot_id]
        size = max(size_bytes, os.fstat(content).st_size)
        await self.create(volume_id, size, lambda target: sparse_copy(content, target), sealed=origin.sealed)

    async def open(self, volume_id: str) -> int:
        return os.open(f"/proc/self/fd/{self._volume(volume_id).file}", os.O_RDWR | os.O_CLOEXEC)

    async def open_snapshot(self, snapshot_id: str) -> int:
        origin = self._origin(snapshot_id)
        if origin is None:
            raise no_snapshot(snapshot_id)
        return os.open(f"/proc/self/fd/{origin.snapshots[snapshot_id]}", os.O_RDONLY | os.O_CLOEXEC)

    async def resize(self, volume_id: str, size_bytes: int) -> None:
        file = self._volume(volume_id).file
        os.ftruncate(file, max(size_bytes, os.fstat(file).st_size))

    async def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        volume = self._volume(volume_id)
        if self._origin(snapshot_id) is not None:
            raise snapshot_exists(snapshot_id)
        size = os.fstat(volume.file).st_size
        copied = self._made(snapshot_id, lambda target: sparse_copy(volume.file, target), size)
        volume.snapshots[snapshot_id] = copied

    async def receive(
        self, volume_id: str, snapshot_id: str, size_bytes: int, fill: Fill, *, sealed: bool, since: str
    ) -> None:
        if self._origin(snapshot_id) is not None:
            raise snapshot_exists(snapshot_id)
        if since:
            volume = self._volume(volume_id)
            if (base := volume.snapshots.get(check_id("since", since))) is None:
                raise no_snapshot(since)
            volume.snapshots[snapshot_id] = await in_thread(
                self._made, snapshot_id, lambda file: _laid(base, file, fill), size_bytes
            )
            return
        await self.create(volume_id, size_bytes, fill, sealed=sealed)
        await self.snapshot(volume_id, snapshot_id)

    async def restore(self, volume_id: str, snapshot_id: str) -> None:
        volume = self._volume(volume_id)
        content = volume.snapshots.get(check_id("snapshot_id", snapshot_id))
        if content is None:
            raise no_snapshot(snapshot_id)
        size = os.fstat(volume.file).st_size
        before, volume.file = volume.file, self._made(volume_id, lambda target: sparse_copy(content, target), size)
        os.close(before)

    async def delete(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        volume = self._volumes.get(check_id("volume_id", volume_id))
        if volume is None:
            return
        if volume.snapshots and not with_snapshots:
            raise has_snapshots(volume_id, len(volume.snapshots))
        del self._volumes[volume_id]
        for file in (volume.file, *volume.snapshots.values()):
            os.close(file)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        check_id("snapshot_id", snapshot_id)
        for volume in self._volumes.values():
            if (content := volume.snapshots.pop(snapshot_id, None)) is not None:
                os.close(content)

    async def find(self, volume_id: str) -> StoredVolume | None:
        return self._described(volume_id) if check_id("volume_id", volume_id) in self._volumes else None

    async def origin(self, snapshot_id: str) -> StoredVolume | None:
        origin = self._origin(snapshot_id)
        return next((self._described(name) for name, each in self._volumes.items() if each is origin), None)

    async def volumes(self) -> tuple[StoredVolume, ...]:
        return tuple(self._described(volume_id) for volume_id in sorted(self._volumes))

    async def free_bytes(self) -> int:
        return self._capacity - sum(_sizes(file)[1] for file in self._files())

    def _volume(self, volume_id: str) -> _Volume:
        volume = self._volumes.get(check_id("volume_id", volume_id))
        if volume is None:
            raise no_volume(volume_id)
        return volume

    def _origin(self, snapshot_id: str) -> _Volume | None:
        check_id("snapshot_id", snapshot_id)
        return next((volume for volume in self._volumes.values() if snapshot_id in volume.snapshots), None)

    def _made(self, name: str, fill: Fill, size_bytes: int) -> int:
        file = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            fill(file)
            os.ftruncate(file, max(size_bytes, os.fstat(file).st_size))
            if sum(_sizes(each)[1] for each in (file, *self._files())) > self._capacity:
                raise CapacityError("disk-full", "no memory left for volumes", resolution="Use a driver with a disk.")
        except BaseException:
            os.close(file)
            raise
        return file

    def _files(self) -> list[int]:
        return [file for volume in self._volumes.values() for file in (volume.file, *volume.snapshots.values())]

    def _described(self, volume_id: str) -> StoredVolume:
        volume = self._volumes[volume_id]
        snapshots = tuple(StoredSnapshot(each, *_sizes(file)) for each, file in sorted(volume.snapshots.items()))
        return StoredVolume(volume_id, *_sizes(volume.file), volume.sealed, snapshots)


def _laid(base: int, file: int, over: Fill) -> None:
    sparse_copy(base, file)
    over(file)


def _sizes(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_size, found.st_blocks * _STAT_BLOCK
