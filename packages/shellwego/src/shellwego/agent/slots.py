"""A file of two slots that are overwritten in turn, so that what is kept in it can be changed on a full disk, too.

Theory. Both slots are written once when the file is made, so they have their room. A change overwrites the older one in
place and is synced. Each slot carries a number that rises, and a checksum; the highest that is whole counts, so a write that
was torn leaves the one before it.

Trap. Only a file system that writes in place (ext4, XFS) needs no room for that; one that copies on write (ZFS, Btrfs) keeps
some back for itself, and may refuse once that is used up.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from pathlib import Path

from shellwego.core.errors import InvalidError

SLOT_BYTES = 4096
_HEAD = struct.Struct("!32sQH")
"""Checksum of all that follows, number, length."""
MOST_BYTES = SLOT_BYTES - _HEAD.size


class Slots:
    """The file at a path, of a few bytes. One process owns it; who calls sees to it that one call is over before the next.

    Raises:
        InvalidError: the file is there, and no slot of it is whole.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number, self._index = 0, 1
        self.content: bytes | None = None
        """What was written last; None: nothing was yet."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        found = [(_parsed(raw[at : at + SLOT_BYTES]), at // SLOT_BYTES) for at in (0, SLOT_BYTES)]
        whole = [(*slot, index) for slot, index in found if slot is not None]
        if not whole:
            raise InvalidError(
                "agent-state-unreadable",
                f"{path} is damaged: nothing that it holds is whole",
                resolution=f"Remove all files of {path.parent}; the node then registers anew under its name.",
            )
        self._number, self.content, self._index = max(whole)

    def write(self, content: bytes) -> None:
        """Keep this from now on; it is on the disk when this returns. After an error it may be there or not.

        Raises:
            OSError: the disk does not take it. One that is full does, once something was written before.
        """
        number, index = self._number + 1, 1 - self._index
        slot = _packed(number, content)
        try:
            self._overwrite(index, slot)
        except FileNotFoundError:
            index = 0
            self._make(slot)
        self._number, self._index, self.content = number, index, content

    def _overwrite(self, index: int, slot: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.pwrite(descriptor, slot, index * SLOT_BYTES) != SLOT_BYTES:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _make(self, slot: bytes) -> None:
        replace_file(self._path, slot + bytes(SLOT_BYTES))


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file as a whole, on the disk when this returns; only its owner may read it.

    Raises:
        OSError: the disk does not take it; what was there is there.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _packed(number: int, content: bytes) -> bytes:
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"{len(content)} bytes do not fit a slot")
    rest = _HEAD.pack(b"", number, len(content))[32:] + content
    return (hashlib.sha256(rest).digest() + rest).ljust(SLOT_BYTES, b"\0")


def _parsed(slot: bytes) -> tuple[int, bytes] | None:
    """Number and content; None where it is not whole."""
    if len(slot) < _HEAD.size:
        return None
    checksum, number, length = _HEAD.unpack_from(slot)
    end = _HEAD.size + length
    if hashlib.sha256(slot[32:end]).digest() != checksum:
        return None
    return number, slot[_HEAD.size : end]
