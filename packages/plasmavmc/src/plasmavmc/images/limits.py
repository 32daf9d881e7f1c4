"""What an image may be at most. Everything in an image is hostile input; each bound has a reason beside it."""

from __future__ import annotations

from dataclasses import dataclass

from plasmavmc.types import GIB, MIB

MANIFEST_BYTES = 4 * MIB
"""The distribution specification asks registries to take manifests up to this size; nobody needs more."""
CONFIG_BYTES = 8 * MIB
"""A configuration has one line of history per layer; the largest seen in the wild have a few hundred KiB."""
TOKEN_BYTES = 256 * 1024
LAYERS = 256
"""Twice what Docker allows."""
NAME_BYTES = 255
"""NAME_MAX of Linux, and of squashfs."""
PATH_BYTES = 4095
"""PATH_MAX of Linux without its NUL."""
LINK_HOPS = 40
"""Symbolic links followed for one path, as the kernel does (path_resolution(7))."""
HEADER_BYTES = MIB
"""All extended tar headers (PAX records, GNU long names) before one member together; and its sparse map."""
BLOB_BYTES = 1 << 50
"""One blob, as a manifest tells it: far beyond `packed_bytes`, and so small that sums stay numbers of 63 bits."""
XATTR_BYTES = 64 * 1024
"""One extended attribute (XATTR_SIZE_MAX)."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds that an operator may want to move."""

    entries: int = 1_000_000
    """Tar members of all layers together, and the directories that only their names imply."""
    unpacked_bytes: int = 20 * GIB
    """All layers together, decompressed; holes of sparse files count as if they were written."""
    packed_bytes: int = 20 * GIB
    """All blobs of an image together, as they are stored."""
    ratio: int = 200
    """Decompressed to compressed, of one layer; not asked before `ratio_floor_bytes`."""
    ratio_floor_bytes: int = GIB
    metadata_bytes: int = 512 * MIB
    """Names, link targets and attributes of all members, and directories: what the index holds in memory beside the same
    few hundred bytes for each entry. The paths of the merged tree may take as much again."""
    owners: int = 4096
    """Distinct owner and group numbers. squashfs can hold 65,536, but tar2sqfs searches them one by one: with 70,000
    it computed for 17 s and then gave up."""
