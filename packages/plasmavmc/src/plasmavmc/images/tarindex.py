"""A spooled tar with random access by name. Its members are hostile names over honest byte ranges."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Generator
from typing import BinaryIO

from plasmavmc.errors import ImageError
from plasmavmc.images.layers import too_large
from plasmavmc.images.tar import Kind, Member, TarReader
from plasmavmc.images.tree import split_path
from plasmavmc.types import MIB

_ENTRIES = 100_000
"""An image archive has a few entries per layer."""
_HOPS = 8


class TarIndex:
    """Members of an uncompressed tar file by their cleaned names; the last of doubled names counts. Blocking."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: dict[bytes, Member] = {}

    def scan(self) -> Generator[int, None, None]:
        """Find the members, in small steps; to be run to its end before anything else.

        Raises:
            ImageError: `image-tar`, `image-path`, `image-too-large`.
        """
        self._file.seek(0)
        reader = TarReader(self._file)
        for count, member in enumerate(reader, 1):
            if count > _ENTRIES:
                raise too_large(f"the archive has more than {_ENTRIES} entries")
            self._members[b"/".join(split_path(member.name))] = member
            yield from reader.skip()

    def __contains__(self, name: str) -> bool:
        return name.encode() in self._members

    def read(self, name: str, limit: int) -> bytes:
        """A small member, whole. Raises `ImageError`: `image-archive` where it is missing, `image-too-large`."""
        member = self._find(name)
        if member.stored > limit:
            raise too_large(f"{name} in the archive has {member.stored} bytes")
        return b"".join(self.content(name))

    def content(self, name: str) -> Generator[bytes, None, None]:
        """A member in chunks. Raises `ImageError`: `image-archive` where it is missing."""
        member = self._find(name)
        at, left = member.offset, member.stored
        while left:
            chunk = os.pread(self._file.fileno(), min(left, MIB), at)
            if not chunk:
                raise ImageError("image-archive", "the archive is cut off")
            at, left = at + len(chunk), left - len(chunk)
            yield chunk

    def _find(self, name: str) -> Member:
        """The file of this name, through links within the archive."""
        key = name.encode()
        for _ in range(_HOPS):
            member = self._members.get(b"/".join(part for part in key.split(b"/") if part not in (b"", b".")))
            match member:
                case Member(kind=Kind.FILE, segments=None):
                    return member
                case Member(kind=Kind.HARD_LINK):
                    key = member.link
                case Member(kind=Kind.SYMLINK):
                    key = posixpath.normpath(posixpath.join(b"/", posixpath.dirname(key), member.link))
                case _:
                    break
        raise ImageError("image-archive", f"the archive has no file {name[:200]!r}, which its index names")
