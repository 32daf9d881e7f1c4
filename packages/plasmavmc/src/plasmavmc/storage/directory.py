"""Disks as sparse files in one directory: what the file and the reflink driver have in common.

    <directory>/<key>.disk           a disk
    <directory>/<key>.part           a clone under way; swept at start

A clone gets its name by a link once it is whole, and a link fails where the name is taken: so a clone that fails or is
cut off leaves nothing, and two clones of one key cannot both succeed. Nothing is synced by itself: a writable layer does
not outlive its VM, and no VM outlives its host but one that is suspended, whose layer is made durable then.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plasmavmc.errors import ConflictError, HostError, InvalidSpecError, NotFoundError, disk_full, is_disk_full
from plasmavmc.host.threads import in_thread
from plasmavmc.storage.backend import Disk

Copy = Callable[[int, int], None]
"""Gives the second descriptor (an empty file) the content of the first; blocking. Raises `OSError`."""

_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_STAT_BLOCK = 512


def check_key(key: str) -> str:
    """Return `key` if it is one by the allow-list (a-z, 0-9 and -, at most 63 characters).

    Raises:
        InvalidSpecError: it is not.
    """
    if not _KEY.fullmatch(key):
        raise InvalidSpecError("key", "a disk's key has 1 to 63 characters of a-z, 0-9 and -")
    return key


class DiskDirectory:
    """One directory of disks; the driver brings the way of copying. One process owns a directory."""

    def __init__(self, directory: Path, copy: Copy) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._copy = copy
        for part in directory.glob("*.part"):
            part.unlink()

    async def clone(self, template: Path, key: str) -> Disk:
        """Raises `ConflictError`: `disk-exists`; `CapacityError`: `disk-full`; `HostError`: `storage-error`."""
        return await self._made(key, lambda path: self._make(template, path))

    async def copy(self, source: str, key: str) -> Disk:
        """Raises as `clone`, and `NotFoundError`: `disk-not-found`."""
        origin = self._path(source)
        if not origin.exists():
            raise NotFoundError("disk-not-found", f"there is no disk {source}")
        return await self._made(key, lambda path: make_copy(origin, path, self._copy))

    async def create(self, key: str, size_bytes: int) -> Disk:
        """Raises as `clone`."""
        return await self._made(key, lambda path: make_empty(path, size_bytes))

    async def _made(self, key: str, make: Callable[[Path], None]) -> Disk:
        path, made = self._path(key), False

        def work() -> None:
            nonlocal made
            with storage_errors(path):
                make(path)
            made = True

        try:
            await in_thread(work)
        except asyncio.CancelledError:
            if made:
                path.unlink(missing_ok=True)
            raise
        return _describe(path)

    async def open(self, key: str) -> int:
        try:
            return os.open(self._path(key), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError("disk-not-found", f"there is no disk {key}") from None

    async def make_durable(self, key: str) -> None:
        """Raises `NotFoundError`: `disk-not-found`; `CapacityError`: `disk-full`; `HostError`: `storage-error`."""
        disk = await self.open(key)
        try:
            await in_thread(self._sync, disk, self._path(key))
        finally:
            os.close(disk)

    def _sync(self, disk: int, path: Path) -> None:
        with storage_errors(path):
            os.fsync(disk)
            with _descriptor(self._directory, os.O_RDONLY | os.O_DIRECTORY) as names:
                os.fsync(names)

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await in_thread(path.unlink, missing_ok=True)

    async def used_bytes(self, key: str) -> int:
        try:
            return _describe(self._path(key)).used_bytes
        except FileNotFoundError:
            return 0

    async def disks(self) -> tuple[Disk, ...]:
        return await in_thread(self._list)

    async def free_bytes(self) -> int:
        found = os.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    def _path(self, key: str) -> Path:
        return self._directory / f"{check_key(key)}.disk"

    def _list(self) -> tuple[Disk, ...]:
        return tuple(_describe(path) for path in sorted(self._directory.glob("*.disk")))

    def _make(self, template: Path, path: Path) -> None:
        make_copy(template, path, self._copy)


def make_copy(template: Path, path: Path, copy: Copy) -> None:
    """A whole copy at `path`, or none. Raises `OSError`; `FileExistsError` where the name is taken."""
    part = path.with_suffix(".part")
    with _descriptor(template, os.O_RDONLY) as source, _descriptor(part, os.O_RDWR | os.O_CREAT | os.O_EXCL) as target:
        try:
            copy(source, target)
            path.hardlink_to(part)
        finally:
            part.unlink()


def make_empty(path: Path, size_bytes: int) -> None:
    """A sparse file at `path`, or none; raises as `make_copy`."""
    part = path.with_suffix(".part")
    with _descriptor(part, os.O_RDWR | os.O_CREAT | os.O_EXCL) as target:
        try:
            os.ftruncate(target, size_bytes)
            path.hardlink_to(part)
        finally:
            part.unlink()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into the engine's errors."""
    try:
        yield
    except FileExistsError:
        raise ConflictError("disk-exists", f"disk {path.stem} exists already") from None
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(f"no space left for disks in {path.parent}") from error
        raise HostError("storage-error", f"{path}: {error.strerror or error}", details=str(error)) from error


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _describe(path: Path) -> Disk:
    found = path.stat()
    return Disk(path.stem, found.st_size, found.st_blocks * _STAT_BLOCK)
