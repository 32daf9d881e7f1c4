"""Volumes as sparse files in one directory: drivers `file` and `reflink`, which differ in their way of copying.

    <directory>/<volume id>/volume.raw       a volume; volume.luks where it is sealed
    <directory>/<volume id>/<id>.snapshot    a snapshot of it
    <directory>/<volume id>/*.part           a copy under way; swept at start
    <directory>/<volume id>.<random>.part/   a volume that is being made or removed; swept at start

What is whole is renamed into its place, and what goes is renamed out of it, so that a crash leaves a thing or does not.
Files are written through before they get their names, and names before a call returns: a volume outlives its host's
power. Who was killed between the two left names that are on no disk yet: the next start brings them there before it tells
of them, or a volume that was told would be missing after a power cut.

Copies are full, never chains of overlays: a chain would have QEMU, and in the end the host, read metadata which a guest
that has taken over its VMM may write, and a snapshot could not go before its clones. With `reflink` (ioctl_ficlone(2):
xfs, btrfs, bcachefs) a copy shares its blocks, is taken at one moment and costs a millisecond; with `file` it costs the
volume's data, and its writer must stand still meanwhile.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plasmavmc.host.files import sync_directory
from plasmavmc.host.threads import in_thread
from plasmavmc.storage.directory import Copy
from plasmavmc.storage.volumes.backend import Fill, StoredSnapshot, StoredVolume
from plasmavmc.storage.volumes.errors import (
    has_snapshots,
    no_snapshot,
    no_volume,
    snapshot_exists,
    volume_errors,
    volume_exists,
)
from plasmavmc.storage.volumes.files import opened, write_whole
from plasmavmc.types import check_id

_OPEN, _SEALED = "volume.raw", "volume.luks"
_SNAPSHOT, _PART = ".snapshot", ".part"
_STAT_BLOCK = 512


class VolumeDirectory:
    """One directory of volumes. One process owns it."""

    def __init__(self, directory: Path, copy: Copy, *, name: str, at_once: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._copy = copy
        self._name = name
        self._at_once = at_once
        for left in directory.glob(f"*{_PART}"):
            shutil.rmtree(left)
        for left in directory.glob(f"*/*{_PART}"):
            left.unlink()
        with volume_errors("bring the names of volumes to the disk"):
            for place in (*(file.parent for file in self._files()), directory):
                sync_directory(place)

    @property
    def name(self) -> str:
        return self._name

    @property
    def at_once(self) -> bool:
        return self._at_once

    async def create(self, volume_id: str, size_bytes: int, fill: Fill, *, sealed: bool = False) -> None:
        await in_thread(self._create, volume_id, size_bytes, fill, sealed=sealed)

    def _create(self, volume_id: str, size_bytes: int, fill: Fill, *, sealed: bool) -> None:
        place = self._place(volume_id)
        if place.exists():
            raise volume_exists(volume_id)
        with volume_errors(f"make volume {volume_id}"), self._made(place) as made:
            write_whole(made / (_SEALED if sealed else _OPEN), fill, size_bytes)

    async def clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        await in_thread(self._clone, snapshot_id, volume_id, size_bytes)

    def _clone(self, snapshot_id: str, volume_id: str, size_bytes: int) -> None:
        source = self._snapshot(snapshot_id)
        name = self._file(source.parent.name).name
        with volume_errors(f"read snapshot {snapshot_id}"), opened(source, os.O_RDONLY) as content:
            size = max(size_bytes, os.fstat(content).st_size)
            self._create(volume_id, size, lambda target: self._copy(content, target), sealed=name == _SEALED)

    async def open(self, volume_id: str) -> int:
        path = self._file(volume_id)
        with volume_errors(f"open volume {volume_id}"):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    async def open_snapshot(self, snapshot_id: str) -> int:
        path = self._snapshot(snapshot_id)
        with volume_errors(f"open snapshot {snapshot_id}"):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    async def resize(self, volume_id: str, size_bytes: int) -> None:
        await in_thread(self._resize, volume_id, size_bytes)

    def _resize(self, volume_id: str, size_bytes: int) -> None:
        path = self._file(volume_id)
        with volume_errors(f"grow volume {volume_id}"), opened(path, os.O_RDWR) as volume:
            if os.fstat(volume).st_size < size_bytes:
                os.ftruncate(volume, size_bytes)
                os.fsync(volume)

    async def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        await in_thread(self._take, volume_id, snapshot_id)

    def _take(self, volume_id: str, snapshot_id: str) -> None:
        path = self._file(volume_id)
        if self._found(snapshot_id) is not None:
            raise snapshot_exists(snapshot_id)
        with volume_errors(f"take snapshot {snapshot_id}"):
            self._copied(path, path.parent / f"{snapshot_id}{_SNAPSHOT}", 0)

    async def receive(
        self, volume_id: str, snapshot_id: str, size_bytes: int, fill: Fill, *, sealed: bool, since: str
    ) -> None:
        await in_thread(self._receive, volume_id, snapshot_id, size_bytes, fill, sealed=sealed, since=since)

    def _receive(
        self, volume_id: str, snapshot_id: str, size_bytes: int, fill: Fill, *, sealed: bool, since: str
    ) -> None:
        if self._found(snapshot_id) is not None:
            raise snapshot_exists(snapshot_id)
        name = f"{snapshot_id}{_SNAPSHOT}"
        if since:
            path, source = self._file(volume_id), self._snapshot(since)
            if source.parent != path.parent:
                raise no_snapshot(since)
            with volume_errors(f"receive snapshot {snapshot_id}"):
                self._copied(source, path.parent / name, size_bytes, fill)
            return
        place = self._place(volume_id)
        if place.exists():
            raise volume_exists(volume_id)
        with volume_errors(f"receive volume {volume_id}"), self._made(place) as made:
            write_whole(made / name, fill, size_bytes)
            self._copied(made / name, made / (_SEALED if sealed else _OPEN), size_bytes)

    async def restore(self, volume_id: str, snapshot_id: str) -> None:
        await in_thread(self._restore, volume_id, snapshot_id)

    def _restore(self, volume_id: str, snapshot_id: str) -> None:
        path, source = self._file(volume_id), self._snapshot(snapshot_id)
        if source.parent != path.parent:
            raise no_snapshot(snapshot_id)
        with volume_errors(f"restore volume {volume_id}"):
            self._copied(source, path, path.stat().st_size)

    async def delete(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        await in_thread(self._delete, volume_id, with_snapshots=with_snapshots)

    def _delete(self, volume_id: str, *, with_snapshots: bool) -> None:
        place = self._place(volume_id)
        if not place.exists():
            return
        snapshots = len(list(place.glob(f"*{_SNAPSHOT}")))
        if snapshots and not with_snapshots:
            raise has_snapshots(volume_id, snapshots)
        with volume_errors(f"remove volume {volume_id}"):
            gone = Path(tempfile.mkdtemp(prefix=f"{volume_id}.", suffix=_PART, dir=self._directory))
            place.rename(gone)
            sync_directory(self._directory)
            shutil.rmtree(gone)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await in_thread(self._delete_snapshot, snapshot_id)

    def _delete_snapshot(self, snapshot_id: str) -> None:
        path = self._found(snapshot_id)
        if path is not None:
            with volume_errors(f"remove snapshot {snapshot_id}"):
                path.unlink(missing_ok=True)
                sync_directory(path.parent)

    async def find(self, volume_id: str) -> StoredVolume | None:
        return await in_thread(self._described, self._place(volume_id))

    async def origin(self, snapshot_id: str) -> StoredVolume | None:
        path = await in_thread(self._found, snapshot_id)
        return None if path is None else await in_thread(self._described, path.parent)

    def _described(self, place: Path) -> StoredVolume | None:
        with volume_errors("look at a volume"):
            return next((_described(place / name) for name in (_OPEN, _SEALED) if (place / name).exists()), None)

    async def volumes(self) -> tuple[StoredVolume, ...]:
        return await in_thread(self._list)

    def _list(self) -> tuple[StoredVolume, ...]:
        with volume_errors("look at the volumes"):
            return tuple(_described(path) for path in sorted(self._files(), key=lambda path: path.parent.name))

    def _files(self) -> list[Path]:
        """Of all volumes."""
        files = (path for name in (_OPEN, _SEALED) for path in self._directory.glob(f"*/{name}"))
        return [path for path in files if not path.parent.name.endswith(_PART)]

    async def free_bytes(self) -> int:
        found = os.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    def _place(self, volume_id: str) -> Path:
        return self._directory / check_id("volume_id", volume_id)

    def _file(self, volume_id: str) -> Path:
        place = self._place(volume_id)
        for name in (_OPEN, _SEALED):
            if (place / name).exists():
                return place / name
        raise no_volume(volume_id)

    def _found(self, snapshot_id: str) -> Path | None:
        return next(self._directory.glob(f"*/{check_id('snapshot_id', snapshot_id)}{_SNAPSHOT}"), None)

    def _snapshot(self, snapshot_id: str) -> Path:
        path = self._found(snapshot_id)
        if path is None:
            raise no_snapshot(snapshot_id)
        return path

    @contextmanager
    def _made(self, place: Path) -> Iterator[Path]:
        """A directory that becomes `place` at the end of the block, or is gone."""
        made = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=_PART, dir=self._directory))
        try:
            yield made
            sync_directory(made)
            if place.exists():
                raise volume_exists(place.name)
            made.rename(place)
            sync_directory(self._directory)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _laid(self, content: int, copy: int, over: Fill | None) -> None:
        self._copy(content, copy)
        if over is not None:
            over(copy)

    def _copied(self, source: Path, target: Path, size_bytes: int, over: Fill | None = None) -> None:
        """`target` is a copy, of this size at least and with this laid over it, or is what it was."""
        part = target.with_name(f"{target.name}{_PART}")
        try:
            with opened(source, os.O_RDONLY) as content:
                size = max(size_bytes, os.fstat(content).st_size)
                write_whole(part, lambda copy: self._laid(content, copy, over), size)
            part.replace(target)
            sync_directory(target.parent)
        finally:
            part.unlink(missing_ok=True)


def _described(path: Path) -> StoredVolume:
    snapshots = tuple(
        StoredSnapshot(snapshot.stem, *_sizes(snapshot)) for snapshot in sorted(path.parent.glob(f"*{_SNAPSHOT}"))
    )
    return StoredVolume(path.parent.name, *_sizes(path), path.name == _SEALED, snapshots)


def _sizes(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_blocks * _STAT_BLOCK
