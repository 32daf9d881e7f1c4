"""What a guest's kernel can drive, seen in the files that it boots from.

A driver's name stands in a kernel that it is built into, and in the name of its module in the initramfs, which is not
packed. So one look serves every kind of kernel.
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path

BALLOON_DRIVER = "virtio_balloon"


def drives(driver: str, kernel: Path, initrd: Path) -> bool:
    """Whether guests that boot from these files have the driver; False where they cannot be read. Blocking: each file is
    looked through once."""
    return any(_holds(path, driver) for path in (kernel, initrd))


def _holds(path: Path, driver: str) -> bool:
    try:
        status = path.stat()
        return _searched(path, driver, status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


@lru_cache(maxsize=16)
def _searched(path: Path, driver: str, _inode: int, _size: int, _changed: int) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return content.find(driver.encode()) >= 0
