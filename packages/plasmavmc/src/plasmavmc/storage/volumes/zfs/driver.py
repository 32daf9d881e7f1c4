"""Driver `zfs`: each volume is a dataset with one file in it, and its snapshots are that dataset's.

    <root>/<volume id>/volume       where its dataset is mounted; <root> is root's, what is in a dataset is ours

Why files and no zvols: zfs-fuse has none, and a file is handed to a VMM as a descriptor like those of the other drivers.

Theory. The pool is the truth: each order looks first, unless nothing was changed since the last look. A dataset is a volume
once a property says that it is whole; what is not is swept at the start. Each change that others see is one command, which
ZFS does whole or not at all. The size is a property too, for it must outlive a rollback; the file follows it, at the latest
at the start.

Snapshots never wait for what was cloned from them. One that is removed is kept by ZFS, marked so that nobody sees it, until
the last clone has gone (`destroy -d`); its id is taken until then. A volume that is removed first gives such snapshots to
one of the clones (`promote`).

A snapshot that is younger than the one that a volume goes back to stays, which ZFS' rollback would not allow; only the
youngest is gone back to by it, in a moment. Else the file is copied.

What is used is told by ZFS with its next group of writes, some seconds later. Source: zfs(8).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.files import sync_directory
from plasmavmc.host.operations import Zfs
from plasmavmc.host.ranges import read_range, write_range
from plasmavmc.host.threads import in_thread, to_its_end
from plasmavmc.host.zfs import VIEW
from plasmavmc.storage.sparse import data_ranges
from plasmavmc.storage.volumes.backend import Fill, StoredVolume
from plasmavmc.storage.volumes.errors import (
    has_snapshots,
    no_snapshot,
    no_volume,
    snapshot_exists,
    volume_errors,
    volume_exists,
)
from plasmavmc.storage.volumes.files import opened, write_whole
from plasmavmc.storage.volumes.zfs.datasets import Datasets
from plasmavmc.storage.volumes.zfs.listing import Dataset, Snapshot
from plasmavmc.types import MIB, check_id

_FILE, _COPY = "volume", "volume.part"
_CHUNK = MIB


class ZfsVolumes:
    """Datasets below one of ours. One process owns them. Made by `open_zfs_volumes`."""

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets
        self._viewing = asyncio.Lock()

    @property
    def name(self) -> str:
        return "zfs"

    @property
    def at_once(self) -> bool:
        return True

    async def create(self, volume_id: str, size_bytes: int, fill: Fill, *, sealed: bool = False) -> None:
        await self._check_new(volume_id)
        async with self._datasets.undone(volume_id):
            await self._begun(volume_id, size_bytes, fill, sealed=sealed)
            await self._datasets.finish(volume_id)

    async def _begun(self, volume_id: str, size_bytes: int, fill: Fill, *, sealed: bool) -> None:
        await self._datasets.create_dataset(volume_id, size_bytes, sealed=sealed)
        with volume_errors(f"make volume {volume_id}"):
            await in_thread(write_whole, self._file(volume_id), fill, size_bytes)
            await in_thread(sync_directory, self._datasets.place(volume_id))

    async def clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        origin, snapshot = await self._snapshot(snapshot_id)
        await self._check_new(volume_id)
        size = max(size_bytes, snapshot.size_bytes)
        async with self._datasets.undone(volume_id):
            await self._datasets.clone(origin, snapshot, volume_id, size, whole=True)
            await self._sized(volume_id, size)

    async def open(self, volume_id: str) -> int:
        path = self._file(check_id("volume_id", volume_id))
        await self._put_right(volume_id)
        if not path.exists():
            await self._volume(volume_id)
            await self._datasets.mount(volume_id)
        with volume_errors(f"open volume {volume_id}"):
            return _open(path, os.O_RDWR)

    async def open_snapshot(self, snapshot_id: str) -> int:
        """A clone is looked at, as zfs-fuse shows no snapshots; it goes with the snapshot, or when it is closed."""
        async with self._viewing:
            origin, snapshot = await self._snapshot(snapshot_id)
            view = f"{snapshot_id}{VIEW}"
            await self._datasets.wanted(view)
            if (await self._datasets.known()).datasets.get(view) is None:
                await self._datasets.clone(origin, snapshot, view, snapshot.size_bytes, whole=False)
            await self._datasets.mount(view)
            await self._sized(view, snapshot.size_bytes)
            with volume_errors(f"open snapshot {snapshot_id}"):
                return _open(self._file(view), os.O_RDONLY)

    async def resize(self, volume_id: str, size_bytes: int) -> None:
        volume = await self._volume(volume_id)
        if volume.size_bytes < size_bytes:
            await self._datasets.set_size(volume_id, size_bytes)
        await self._sized(volume_id, max(size_bytes, volume.size_bytes))

    async def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        check_id("snapshot_id", snapshot_id)
        volume = await self._volume(volume_id)
        await self._put_right(volume_id)
        if (await self._datasets.known()).taken(snapshot_id):
            raise snapshot_exists(snapshot_id)
        await self._datasets.snapshot(volume_id, snapshot_id, volume.size_bytes)

    async def receive(
        self, volume_id: str, snapshot_id: str, size_bytes: int, fill: Fill, *, sealed: bool, since: str
    ) -> None:
        check_id("snapshot_id", snapshot_id)
        if (await self._datasets.known()).taken(snapshot_id):
            raise snapshot_exists(snapshot_id)
        if since:
            await self._received(volume_id, snapshot_id, size_bytes, fill, since)
            return
        await self._check_new(volume_id)
        async with self._datasets.undone(volume_id):
            await self._begun(volume_id, size_bytes, fill, sealed=sealed)
            await self._datasets.snapshot(volume_id, snapshot_id, size_bytes)
            await self._datasets.finish(volume_id)

    async def _received(self, volume_id: str, snapshot_id: str, size_bytes: int, fill: Fill, since: str) -> None:
        volume = await self._volume(volume_id)
        if (await self._snapshot(since))[0].name != volume_id:
            raise no_snapshot(since)
        async with self._datasets.given_up(volume_id, since):
            with volume_errors(f"receive snapshot {snapshot_id}"):
                await in_thread(_overwrite, self._file(volume_id), fill, size_bytes)
            if volume.size_bytes < size_bytes:
                await self._datasets.set_size(volume_id, size_bytes)
            await self._datasets.snapshot(volume_id, snapshot_id, size_bytes)

    async def restore(self, volume_id: str, snapshot_id: str) -> None:
        volume = await self._volume(volume_id)
        owner, snapshot = await self._snapshot(snapshot_id)
        if owner.name != volume_id:
            raise no_snapshot(snapshot_id)
        try:
            await self._datasets.rollback(volume_id, snapshot_id)
        except HostError:  # another one is younger
            await self._copied_back(volume, snapshot)
        await self._sized(volume_id, volume.size_bytes)
        if volume.receiving:
            await self._datasets.finish(volume_id)

    async def _copied_back(self, volume: Dataset, snapshot: Snapshot) -> None:
        old = await self.open_snapshot(snapshot.name)
        try:
            with volume_errors(f"restore volume {volume.name}"):
                await in_thread(_replace, self._datasets.place(volume.name), old, volume.size_bytes)
        finally:
            os.close(old)

    async def delete(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        volume = (await self._datasets.known()).volume(check_id("volume_id", volume_id))
        if volume is None:
            return
        if volume.kept and not with_snapshots:
            raise has_snapshots(volume_id, len(volume.kept))
        await to_its_end(self._removed(volume))

    async def _removed(self, volume: Dataset) -> None:
        for snapshot in volume.kept:
            await self._unseen(snapshot.name)
        if volume.kept:
            await self._datasets.renounce(volume.name)
            await self._datasets.clear_away(volume.name)
        else:
            await self._datasets.destroy(volume.name)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        found = (await self._datasets.known()).owner(check_id("snapshot_id", snapshot_id))
        if found is None:
            return
        await self._unseen(snapshot_id)
        await self._datasets.drop_snapshot(found[0].name, snapshot_id)

    async def _unseen(self, snapshot_id: str) -> None:
        """Nobody looks at a snapshot any more, or soon so."""
        await self._datasets.clear_away(f"{snapshot_id}{VIEW}")

    async def find(self, volume_id: str) -> StoredVolume | None:
        volume = (await self._datasets.known()).volume(check_id("volume_id", volume_id))
        return None if volume is None else volume.stored

    async def origin(self, snapshot_id: str) -> StoredVolume | None:
        found = (await self._datasets.known()).owner(check_id("snapshot_id", snapshot_id))
        return None if found is None else found[0].stored

    async def volumes(self) -> tuple[StoredVolume, ...]:
        await self._datasets.clear_left()
        return tuple(each.stored for each in (await self._datasets.look()).volumes())

    async def free_bytes(self) -> int:
        return (await self._datasets.look()).available

    async def recover(self) -> None:
        """Sweep what a crash left half done, and have all volumes mounted, in their size. Before all else."""
        for name, each in (await self._datasets.known()).datasets.items():
            if not each.whole:
                await self._datasets.destroy(name)
        for volume in (await self._datasets.known()).volumes():
            await self._datasets.mount(volume.name)
            if volume.receiving:
                await self._datasets.take_back(volume.name, [each.name for each in volume.kept])
            (self._datasets.place(volume.name) / _COPY).unlink(missing_ok=True)
            await self._sized(volume.name, volume.size_bytes)

    # Small parts

    def _file(self, name: str) -> Path:
        return self._datasets.place(name) / _FILE

    async def _volume(self, volume_id: str) -> Dataset:
        volume = (await self._datasets.known()).volume(check_id("volume_id", volume_id))
        if volume is None:
            raise no_volume(volume_id)
        return volume

    async def _snapshot(self, snapshot_id: str) -> tuple[Dataset, Snapshot]:
        found = (await self._datasets.known()).owner(check_id("snapshot_id", snapshot_id))
        if found is None:
            raise no_snapshot(snapshot_id)
        return found

    async def _put_right(self, volume_id: str) -> None:
        """What it holds itself is not half of one thing and half of another, even where that could not be seen to at once.
        Raises `HostError`, `storage-error`."""
        if self._datasets.is_given_up(volume_id):
            volume = await self._volume(volume_id)
            await self._datasets.take_back(volume_id, [each.name for each in volume.kept])
            await self._sized(volume_id, volume.size_bytes)
        if self._datasets.is_given_up(volume_id):
            raise HostError(
                "storage-error",
                f"what the volume {volume_id} held was given up, and there is no way back to its youngest snapshot",
                resolution="Look with zpool status, and try again.",
            )

    async def _check_new(self, volume_id: str) -> None:
        """Nothing has this name, and nothing is left of an attempt to make it."""
        await self._datasets.wanted(check_id("volume_id", volume_id))
        found = (await self._datasets.known()).datasets.get(volume_id)
        if found is not None and found.whole:
            raise volume_exists(volume_id)
        if found is not None:
            await self._datasets.destroy(volume_id)

    async def _sized(self, name: str, size_bytes: int) -> None:
        with volume_errors(f"grow volume {name}"):
            await in_thread(_grow, self._file(name), size_bytes)


async def open_zfs_volumes(host: Zfs) -> ZfsVolumes:
    """The volumes of an installation for which the operator named a dataset.

    Raises:
        HostError: the dataset cannot be used; as `Zfs`, and `storage-error`.
    """
    volumes = ZfsVolumes(Datasets(host, await host.zfs_open()))
    await volumes.recover()
    return volumes


def _grow(path: Path, size_bytes: int) -> None:
    with opened(path, os.O_RDWR) as file:
        if os.fstat(file).st_size < size_bytes:
            os.ftruncate(file, size_bytes)
            os.fsync(file)


def _overwrite(path: Path, fill: Fill, size_bytes: int) -> None:
    """Lay something over a volume, and bring it to the disk."""
    with opened(path, os.O_RDWR) as file:
        fill(file)
        if os.fstat(file).st_size < size_bytes:
            os.ftruncate(file, size_bytes)
        os.fsync(file)


def _replace(place: Path, content: int, size_bytes: int) -> None:
    """The volume in this place has another content now, or the one it had."""
    part = place / _COPY
    part.unlink(missing_ok=True)
    try:
        write_whole(part, lambda copy: _copy(content, copy), size_bytes)
        part.replace(place / _FILE)
        sync_directory(place)
    finally:
        part.unlink(missing_ok=True)


def _copy(content: int, target: int) -> None:
    """All that is not zeros: zfs-fuse knows of no holes."""
    for start, end in data_ranges(content):
        for at in range(start, end, _CHUNK):
            data = read_range(content, min(_CHUNK, end - at), at)
            if data.strip(b"\0"):
                write_range(target, data, at)


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
