"""A file or directory of this host as a tar stream, for `vm cp`.

The tree is walked with descriptors, and no symbolic link in it is followed, for it may change while it is read: links are
packed as links. What is neither file, directory nor link is left out, with a word. Its first component is always the same
name: how it is called there is said elsewhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from plasmavmc.cli.ends import FAILED, Failure
from plasmavmc.images.tar import Kind, Member
from plasmavmc.images.tarwrite import END, header, padding

TOP = b"x"
_CHUNK = 256 * 1024

Say = Callable[[str], None]


def pack(source: Path, say: Say) -> Iterator[bytes]:
    """The stream, in pieces.

    Raises:
        Failure: something cannot be read, or changed while it was read.
    """
    parent = os.open(source.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield from _entry(parent, source.name or ".", TOP, str(source), say)
    finally:
        os.close(parent)
    yield END


def _entry(parent: int, name: str, path: bytes, shown: str, say: Say) -> Iterator[bytes]:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            yield header(_member(path, Kind.DIRECTORY, found), path)
            yield from _listed(parent, name, path, shown, say)
        elif stat.S_ISREG(found.st_mode):
            yield from _file(parent, name, path, shown)
        elif stat.S_ISLNK(found.st_mode):
            target = os.fsencode(os.readlink(name, dir_fd=parent))
            yield header(_member(path, Kind.SYMLINK, found), path, target)
        else:
            say(f"{shown} is left out: it is neither file, directory nor symbolic link")
    except OSError as error:
        raise Failure(f"{shown} cannot be read: {error.strerror}", code=FAILED) from error


def _member(path: bytes, kind: Kind, found: os.stat_result, size: int = 0) -> Member:
    return Member(path, kind, mode=stat.S_IMODE(found.st_mode), mtime=int(found.st_mtime), size=size)


def _listed(parent: int, name: str, path: bytes, shown: str, say: Say) -> Iterator[bytes]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for entry in sorted(os.listdir(descriptor)):  # noqa: PTH208 - of a descriptor, which no path has
            yield from _entry(descriptor, entry, path + b"/" + os.fsencode(entry), f"{shown}/{entry}", say)
    finally:
        os.close(descriptor)


def _file(parent: int, name: str, path: bytes, shown: str) -> Iterator[bytes]:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        yield header(_member(path, Kind.FILE, found, found.st_size), path)
        left = found.st_size
        while left:
            data = stream.read(min(left, _CHUNK))
            if not data:
                raise Failure(f"{shown} shrank while it was read", code=FAILED, resolution="Copy it again.")
            left -= len(data)
            yield data
        yield padding(found.st_size)
