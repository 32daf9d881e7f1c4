"""An initramfs as bytes: the cpio "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Pure.

Everything belongs to root and has time 0, so that the same content is the same archive.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_ALIGN = 4
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive; `path` is relative, and its directories come before it."""

    path: str
    mode: int
    """Type and permissions, as in stat(2)."""
    content: bytes = b""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def directory(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def regular(path: str, content: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, content)


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)


def _record(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of these entries, in this order."""
    records = [_record(number, entry) for number, entry in enumerate(entries, start=1)]
    return b"".join((*records, _record(0, Entry(_TRAILER, 0))))
