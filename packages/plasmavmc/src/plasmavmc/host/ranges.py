"""Ranges of files, read and written whole: the kernel may do less at once than it was asked for, and does not say why."""

from __future__ import annotations

import os


def read_range(file: int, size: int, offset: int) -> bytes:
    """So many bytes from there; fewer only where the file ends. Raises `OSError`.

    One pread(2) gives fewer as well where the disk fails in the midst of it, and says so no sooner than at the next.
    """
    found = os.pread(file, size, offset)
    while len(found) < size and (more := os.pread(file, size - len(found), offset + len(found))):
        found += more
    return found


def write_range(file: int, data: bytes, offset: int) -> None:
    """All of these bytes, from there. Raises `OSError`.

    One pwrite(2) takes fewer where the disk is full in the midst of it, and says so no sooner than at the next.
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
