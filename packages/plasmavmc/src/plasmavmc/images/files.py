"""Small file-system moves that must not leave anything half: durable renames, and the disk that is full.

Durable means: data is synced before the rename, the directory after it. A crash leaves the old state or the new one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

from plasmavmc.errors import CapacityError, HostError, disk_full, is_disk_full
from plasmavmc.host.files import sync_directory
from plasmavmc.types import GIB, MIB

_LEAST_RESERVE, _MOST_RESERVE = 64 * MIB, 10 * GIB
_RESERVED_PART = 20
"""Images leave a twentieth of their disk, within these bounds: what others write there (records, logs, a database, disks of
VMs) goes on when the store is full."""


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn what the file system refuses into the engine's errors.

    Raises:
        CapacityError: `disk-full`.
        HostError: `disk-error`, with what the kernel said.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise images_full(directory) from error
        raise HostError("disk-error", f"{directory}: {error.strerror or error}", details=str(error)) from error


def images_full(directory: Path) -> CapacityError:
    return disk_full(
        f"no space left on the disk of {directory}",
        resolution="free space, remove images that are not used, or give the data directory a larger disk",
    )


def check_room(directory: Path, wanted: int) -> None:
    """Refuse early what cannot fit.

    Raises:
        CapacityError: `disk-full`.
    """
    if not _has_room(os.statvfs(directory), wanted):
        raise images_full(directory)


def _has_room(disk: os.statvfs_result, wanted: int) -> bool:
    """Whether the reserve stays when so much is written by an unprivileged process."""
    reserve = min(max(disk.f_blocks * disk.f_frsize // _RESERVED_PART, _LEAST_RESERVE), _MOST_RESERVE)
    return disk.f_bavail * disk.f_frsize >= wanted + reserve


def write_all(file: RawIOBase, data: bytes) -> None:
    """Write all of `data` to an unbuffered file. Unbuffered, for a buffer would fail once more when it is closed.

    Raises:
        OSError: of the kernel; `ENOSPC` also where the disk has come to its reserve meanwhile.
    """
    if not _has_room(os.fstatvfs(file.fileno()), len(data)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def make_private(directory: Path) -> Path:
    """Make a directory (and its parents) that only our user reads."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(source: Path, target: Path) -> None:
    """Rename `source` (already synced) to `target` so that it survives a crash."""
    make_private(target.parent)
    source.rename(target)
    sync_directory(target.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file, whole.

    Raises:
        CapacityError: `disk-full`.
        HostError: `disk-error`.
    """
    with disk_errors(path.parent):
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_bytes(data)
        sync_file(fresh)
        publish(fresh, path)


def empty_directory(directory: Path) -> None:
    """Remove everything below a directory, which stays."""
    for entry in make_private(directory).iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
