"""A spooled tar with random access by name. Its members are hostile names over honest byte ranges."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Generator
from dataclasses import dataclass
from typing import BinaryIO

from plasmavmc.errors import ImageError
from plasmavmc.images.layers import too_large
from plasmavmc.images.limits import PATH_BYTES
from plasmavmc.images.tar import Kind, Member, Pauses, TarReader
from plasmavmc.images.tree import split_path
from plasmavmc.types import MIB

_ENTRIES = 100_000
"""An image archive has a few entries per layer."""
_INDEX_BYTES = 64 * MIB
"""Names and link targets of all entries, and what each takes beside."""
_ENTRY_BYTES = 256
_HOPS = 8


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the content of a file lies in the archive. Two names for one file have the same."""

    offset: int
    size: int


class TarIndex:
    """Files and links of an uncompressed tar file by their cleaned names; the last of doubled names counts. Blocking."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: dict[bytes, Extent | bytes | None] = {}
        """The target of a link, from the archive's root on; None for what is neither file nor link."""

    def scan(self) -> Generator[bytes, None, None]:
        """Find the members, in small steps; to be run to its end before anything else.

        Raises:
            ImageError: `image-tar`, `image-path`, `image-too-large`.
        """
        self._file.seek(0)
        reader = TarReader(self._file)
        pauses = Pauses(reader)
        taken = 0
        for count, member in enumerate(reader, 1):
            if count > _ENTRIES:
                raise too_large(f"the archive has more than {_ENTRIES} entries")
            name = b"/".join(split_path(member.name))
            kept = _kept(name, member)
            taken += _ENTRY_BYTES + len(name) + (len(kept) if isinstance(kept, bytes) else 0)
            if taken > _INDEX_BYTES:
                raise too_large(f"the names in the archive need more than {_INDEX_BYTES >> 20} MiB")
            self._members[name] = kept
            yield from pauses.over(reader.skip())

    def __contains__(self, name: str) -> bool:
        return name.encode() in self._members

    def read(self, name: str, limit: int) -> bytes:
        """A small member, whole. Raises `ImageError`: `image-archive` where it is missing, `image-too-large`."""
        extent = self.find(name)
        if extent.size > limit:
            raise too_large(f"{name} in the archive has {extent.size} bytes")
        return b"".join(self.content(extent))

    def content(self, extent: Extent) -> Generator[bytes, None, None]:
        """A member in chunks. Raises `ImageError`: `image-archive`."""
        at, left = extent.offset, extent.size
        while left:
            chunk = os.pread(self._file.fileno(), min(left, MIB), at)
            if not chunk:
                raise ImageError("image-archive", "the archive is cut off")
            at, left = at + len(chunk), left - len(chunk)
            yield chunk

    def find(self, name: str) -> Extent:
        """The file of this name, through links within the archive. Raises `ImageError`: `image-archive`, there is none."""
        key = name.encode()
        for _ in range(_HOPS):
            found = self._members.get(b"/".join(part for part in key.split(b"/") if part not in (b"", b".")))
            if isinstance(found, Extent):
                return found
            if found is None:
                break
            key = found
        raise ImageError("image-archive", f"the archive has no file {name[:200]!r}, which its index names")


def _kept(name: bytes, member: Member) -> Extent | bytes | None:
    """What is needed of a member."""
    match member:
        case Member(kind=Kind.FILE, segments=None):
            return Extent(member.offset, member.stored)
        case Member() if len(member.link) > PATH_BYTES:
            return None
        case Member(kind=Kind.HARD_LINK):
            return member.link
        case Member(kind=Kind.SYMLINK):
            return posixpath.normpath(posixpath.join(b"/", posixpath.dirname(name), member.link))
        case _:
            return None
