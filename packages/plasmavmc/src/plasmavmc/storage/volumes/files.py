"""Files of volumes: opened never through a link, and on the disk before anybody relies on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plasmavmc.storage.volumes.backend import Fill


def write_whole(path: Path, fill: Fill, size_bytes: int) -> None:
    """Make a file of this size, and bring it to the disk. Raises `OSError`."""
    with opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
        fill(file)
        if os.fstat(file).st_size != size_bytes:
            os.ftruncate(file, size_bytes)
        os.fsync(file)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor for the length of the block."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
