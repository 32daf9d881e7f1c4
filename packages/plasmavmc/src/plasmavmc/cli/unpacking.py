"""A tar stream that a guest gives out, brought to a place of this host, for `vm cp`.

Theory. The guest is hostile, and other users of this host may write where we do. So a member's path is walked component by
component with descriptors, following no symbolic link; what has its name already is removed, not written through; and
only files, directories and links are made, with the permissions of ordinary ones. How much comes is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plasmavmc.cli.ends import FAILED, USAGE, Failure
from plasmavmc.images.tar import Kind, Member, TarReader

if TYPE_CHECKING:
    from plasmavmc.images.tar import ByteStream

MAX_MEMBERS = 1_000_000
_MODE = 0o777
_LATEST = (1 << 32) - 1
"""The last time, in seconds since the epoch, that is not the guest's invention."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(slots=True)
class Unpacked:
    """What was brought in."""

    members: int = 0
    bytes: int = 0


def unpack(stream: ByteStream, destination: str, name: str, *, contents: bool, max_bytes: int) -> Unpacked:
    """Bring the tree to `destination`: into it, as `name`, where it is a directory; else it becomes that.

    Raises:
        Failure: it has no place to go, cannot be written, is unsound, or is more than `max_bytes`.
    """
    reader = TarReader(stream)
    place: _Place | None = None
    done = Unpacked()
    try:
        for member in reader:
            if place is None:
                place = _Place.find(destination, name, contents=contents, directory=member.kind is Kind.DIRECTORY)
            done.members += 1
            if done.members > MAX_MEMBERS:
                raise Failure(f"more than {MAX_MEMBERS} files come out of the VM", code=FAILED)
            place.put(member, _bounded(reader.data(member), done, max_bytes))
    finally:
        if place is not None:
            os.close(place.descriptor)
    if place is None:
        raise Failure("nothing came out of the VM", code=FAILED)
    return done


def _bounded(chunks: Iterator[bytes], done: Unpacked, most: int) -> Iterator[bytes]:
    for chunk in chunks:
        done.bytes += len(chunk)
        if done.bytes > most:
            raise Failure(
                f"more than {most} bytes come out of the VM", code=FAILED, resolution="Allow more: --max-size SIZE"
            )
        yield chunk


@dataclass(frozen=True, slots=True)
class _Place:
    """Where it goes: as `top` in a directory; without one into the directory itself."""

    descriptor: int
    top: bytes
    shown: str

    @classmethod
    def find(cls, destination: str, name: str, *, contents: bool, directory: bool) -> _Place:
        path = Path(destination)
        try:
            if path.is_dir():
                return cls(os.open(path, _DIRECTORY), b"" if contents else os.fsencode(name), destination)
            if destination.endswith("/") and not directory:
                raise Failure(f"{destination} is no directory of this host", code=USAGE)
            return cls(os.open(path.parent, _DIRECTORY), os.fsencode(path.name), str(path.parent))
        except OSError as error:
            raise Failure(f"{path.parent} cannot be opened: {error.strerror}", code=USAGE) from error

    def put(self, member: Member, data: Iterator[bytes]) -> None:
        parts = member.name.rstrip(b"/").split(b"/")[1:]
        if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
            raise Failure(f"the VM names {os.fsdecode(member.name)!r}, which is no path of what is copied", code=FAILED)
        path = [self.top, *parts] if self.top else parts
        if not path:
            return
        if b"\0" in member.link:
            raise Failure(f"the VM sends a link {os.fsdecode(member.name)!r} to what is no path", code=FAILED)
        shown = os.fsdecode(b"/".join((os.fsencode(self.shown), *path)))
        try:
            self._put(path, member, data)
        except OSError as error:
            raise Failure(f"{shown!r} cannot be written: {error.strerror}", code=FAILED) from error

    def _put(self, path: list[bytes], member: Member, data: Iterator[bytes]) -> None:
        parent = os.dup(self.descriptor)
        try:
            for part in path[:-1]:
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                os.close(parent)
                parent = below
            _make(parent, path[-1], member, data)
        finally:
            os.close(parent)


def _make(parent: int, name: bytes, member: Member, data: Iterator[bytes]) -> None:
    match member.kind:
        case Kind.DIRECTORY:
            try:
                os.mkdir(name, (member.mode & _MODE) | 0o700, dir_fd=parent)
            except FileExistsError:
                os.close(os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent))
        case Kind.FILE:
            _remove(parent, name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, member.mode & _MODE, dir_fd=parent)
            with os.fdopen(descriptor, "wb") as file:
                for chunk in data:
                    file.write(chunk)
                file.flush()
                seconds = min(max(member.mtime, 0), _LATEST)
                os.utime(descriptor, (seconds, seconds))
        case Kind.SYMLINK:
            _remove(parent, name)
            os.symlink(member.link, name, dir_fd=parent)
        case _:
            raise Failure("the VM sends what is neither file, directory nor symbolic link", code=FAILED)


def _remove(parent: int, name: bytes) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)
