"""Driver `reflink`: a disk shares its template's blocks until it writes (ioctl_ficlone(2): xfs, btrfs, bcachefs).

A clone takes a tenth of a millisecond, whatever the template's size. Both files must lie on one file system, and the
host's cache may lie on another; so each template is copied into the directory once, and cloned from there. Such a copy
is named by the template's identity and time: a template that was made anew is copied anew. The copies of an earlier run are
removed at start; disks that share their blocks keep them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import threading
from pathlib import Path

from plasmavmc.storage.directory import DiskDirectory, make_copy
from plasmavmc.storage.sparse import sparse_copy

FICLONE = 0x40049409
"""_IOW(0x94, 9, int), linux/fs.h."""


def clone_file(source: int, target: int) -> None:
    """Share all blocks of `source` with `target`; blocking. Raises `OSError` where the file system cannot."""
    fcntl.ioctl(target, FICLONE, source)


def can_reflink(directory: Path) -> bool:
    """True where files of this directory can share blocks; tried on two files without names."""
    with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as target:
        os.pwrite(source.fileno(), bytes(4096), 0)
        try:
            clone_file(source.fileno(), target.fileno())
        except OSError:
            return False
    return True


class ReflinkStorage(DiskDirectory):
    """`StorageBackend` over shared blocks. `can_reflink(directory)` must hold."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, clone_file)
        self._copying = threading.Lock()
        for near in directory.glob("*.template"):
            near.unlink()

    @property
    def name(self) -> str:
        return "reflink"

    def _make(self, template: Path, path: Path) -> None:
        super()._make(self._near(template), path)

    def _near(self, template: Path) -> Path:
        """The template's copy in our own directory; whoever comes first makes it, the others wait."""
        found = template.stat()
        identity = f"{template}\0{found.st_ino}\0{found.st_size}\0{found.st_mtime_ns}"
        near = self._directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.template"
        with self._copying:
            if not near.exists():
                make_copy(template, near, sparse_copy)
        return near
