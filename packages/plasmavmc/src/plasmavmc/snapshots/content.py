"""Memory and state of a guest, copied piece by piece with a digest of each.

Theory. A guest's memory is sparse (what it never touched) and holds many zero pages, so only what has content is kept:
where there is data as the file system knows it (SEEK_DATA), less blocks of zeros. Pieces are independent, so two threads do
them at once: reading, hashing and writing all happen without the interpreter's lock. 100 MiB take about 0.1 s.

What is loaded is verified as it is copied into memory that nobody else can write: the very bytes that the guest will
run on. A piece that is not as it was written ends everything.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from plasmavmc.errors import CapacityError, HostError, disk_full, is_disk_full
from plasmavmc.host.names import GUEST_MEMORY
from plasmavmc.host.ranges import read_range, write_range
from plasmavmc.host.threads import in_thread
from plasmavmc.snapshots.manifest import Piece, damaged

Part = TypeVar("Part")

PIECE = 2 * 1024 * 1024
BLOCK = 64 * 1024
THREADS = 2
_ZEROS = bytes(BLOCK)


def new_memory(size: int) -> int:
    """A memfd of this size for a guest, which cannot grow or shrink any more; owned by the caller."""
    descriptor = os.memfd_create(GUEST_MEMORY, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return descriptor


def seal(memory: int) -> None:
    """Let nobody write to a memory from `new_memory` any more. What is mapped privately can still be changed by whoever
    mapped it, for himself."""
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


async def copy_out(source: int, target: int) -> tuple[Piece, ...]:
    """Give `target` the content of `source` (holes and zeros left out), which nobody writes to meanwhile.

    Raises:
        CapacityError: `disk-full`.
        HostError: `snapshot-error`, what the file system refused.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    return await _each(_stretches(source), lambda stretch: _copy_stretch(source, target, stretch))


async def digest(source: int) -> tuple[Piece, ...]:
    """The pieces of a file that was written by others, whole."""
    size = os.fstat(source).st_size
    stretches = ((start, min(PIECE, size - start)) for start in range(0, size, PIECE))
    return await _each(stretches, lambda stretch: [_piece(stretch[0], _read(source, stretch))])


async def pieces_of(source: int) -> tuple[Piece, ...]:
    """The pieces of a sparse file as it lies (holes and zeros left out), which nobody writes to meanwhile.

    Raises:
        HostError: `snapshot-error`, what the file system refused.
    """
    return await _each(_stretches(source), lambda stretch: _describe_stretch(source, stretch))


def read_piece(source: int, piece: Piece) -> bytes:
    """One piece, verified. Blocking.

    Raises:
        HostError: `snapshot-damaged`, it is not what was written; `snapshot-error`.
    """
    with _refusals():
        data = read_range(source, piece.length, piece.offset)
    if _piece(piece.offset, data) != piece:
        raise damaged(f"its content is not what was written, at {piece.offset}")
    return data


def write_piece(target: int, piece: Piece, data: bytes) -> None:
    """Put a piece, which its caller verified, where it belongs. Blocking.

    Raises:
        CapacityError: `disk-full`.
        HostError: `snapshot-error`.
    """
    with _refusals():
        write_range(target, data, piece.offset)


def set_size(target: int, size: int) -> None:
    """Make a file so large, with a hole where nothing is. Raises as `write_piece`."""
    with _refusals():
        os.ftruncate(target, size)


async def copy_in(source: int, pieces: Sequence[Piece], target: int) -> None:
    """Give `target` the pieces of `source`, each verified.

    Raises:
        HostError: `snapshot-damaged`, a piece is not what was written.
    """
    await _each(pieces, lambda piece: _copy_piece(source, piece, target))


def _copy_piece(source: int, piece: Piece, target: int) -> list[Piece]:
    write_range(target, read_piece(source, piece), piece.offset)
    return []


def _copy_stretch(source: int, target: int, stretch: tuple[int, int]) -> list[Piece]:
    offset, data = stretch[0], _read(source, stretch)
    pieces = []
    for start, end in _runs(data):
        pieces.append(_piece(offset + start, data[start:end]))
        write_range(target, data[start:end], offset + start)
    return pieces


def _describe_stretch(source: int, stretch: tuple[int, int]) -> list[Piece]:
    offset, data = stretch[0], _read(source, stretch)
    return [_piece(offset + start, data[start:end]) for start, end in _runs(data)]


def _read(source: int, stretch: tuple[int, int]) -> bytes:
    """All of a stretch: what came short would be kept as zeros, and nobody would ever know."""
    offset, length = stretch
    data = read_range(source, length, offset)
    if len(data) < length:
        raise OSError(errno.EIO, "the file shrank while it was read")
    return data


def _runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Where `data` is not zero, in whole blocks."""
    start = -1
    for at in range(0, len(data), BLOCK):
        empty = data[at : at + BLOCK] == _ZEROS
        if empty and start >= 0:
            yield start, at
            start = -1
        elif not empty and start < 0:
            start = at
    if start >= 0:
        yield start, len(data)


def _piece(offset: int, data: bytes) -> Piece:
    return Piece(offset, len(data), hashlib.sha256(data).hexdigest())


def _stretches(source: int) -> Iterator[tuple[int, int]]:
    """Each PIECE of a file in which there is data, whole: its holes are read as zeros. A guest can have its memory lie in as
    many runs as it has pages, and what is kept of it must not be as many."""
    size, end = os.fstat(source).st_size, 0
    while True:
        try:
            start = os.lseek(source, end, os.SEEK_DATA) // PIECE * PIECE
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(start + PIECE, size)
        yield start, end - start


async def _each(parts: Iterable[Part], work: Callable[[Part], list[Piece]]) -> tuple[Piece, ...]:
    """The pieces of all parts, in order; parts are looked for by the threads too. Threads have ended when this returns or
    raises, cancelled or not."""
    left, taking = iter(parts), threading.Lock()
    done: list[Piece] = []
    given_up = threading.Event()

    def take() -> tuple[Part, ...]:
        with taking:
            for part in left:
                return (part,)
        return ()

    def serve() -> None:
        try:
            while not given_up.is_set() and (taken := take()):
                done.extend(work(taken[0]))
        except BaseException:
            given_up.set()
            raise

    with _refusals():
        servers = [asyncio.create_task(in_thread(serve)) for _ in range(THREADS)]
        try:
            await asyncio.gather(*servers)
        except BaseException:
            given_up.set()
            await asyncio.gather(*servers, return_exceptions=True)
            raise
    return await in_thread(_in_order, done)


def _in_order(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    return tuple(sorted(pieces, key=lambda piece: piece.offset))


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(error) from error


def _refused(error: OSError) -> HostError | CapacityError:
    if is_disk_full(error):
        return disk_full("no space left for a snapshot")
    return HostError("snapshot-error", f"a snapshot cannot be copied: {error.strerror or error}")
