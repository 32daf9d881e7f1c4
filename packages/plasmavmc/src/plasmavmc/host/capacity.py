"""What this host has."""

from __future__ import annotations

import os
from pathlib import Path

HOST_RESERVE_BYTES = 256 << 20
"""Memory of the host that no VM may have: kernel, engine, and what runs beside it."""


def cpu_milli() -> int:
    return (os.cpu_count() or 1) * 1000


def memory_bytes() -> int:
    """Memory that VMs may be promised."""
    return max(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - HOST_RESERVE_BYTES, 0)


def disk_bytes(directory: Path) -> int:
    """What the file system of `directory` could give an unprivileged process in all; what it keeps for root is not ours
    (statvfs(3))."""
    found = os.statvfs(directory)
    return (found.f_blocks - (found.f_bfree - found.f_bavail)) * found.f_frsize


def disk_free_bytes(directory: Path) -> int:
    """What an unprivileged process may still write there."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
