"""Snapshots on their way to another node, as a stream of bytes that any driver writes and any driver reads.

    header    magic, size in bytes, flags: sealed, based on an earlier snapshot
    block     its number, and what is in it where that differs from the earlier one (or from zeros); many of them
    end       SHA-256 over all blocks that are not zeros, each with its number: of the whole, and not of what was sent

Theory. The sender has both snapshots and reads what either has as data. The receiver lays the blocks over its copy of the
earlier one, and reads the whole back before it has a name: where the sums differ, because the two had not begun with the
same, nothing is kept. Numbers are big-endian. What is sealed goes as it lies; nobody on the way needs its key.

To read two large snapshots takes minutes in which nothing may differ, and whoever waits on the way takes silence for a
stall. So the header goes before anything is read, and after `SILENT_S` what there is, be it little; where there is nothing,
the block that is just looked at goes although it does not differ: to lay it again changes nothing, and every receiver takes
it. Who leaves ends the scan at its next block.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import os
import struct
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, takewhile

from plasmavmc.errors import InvalidSpecError, UnavailableError
from plasmavmc.host.ranges import read_range
from plasmavmc.host.threads import to_its_end
from plasmavmc.storage.sparse import data_ranges
from plasmavmc.storage.volumes.content import Extent
from plasmavmc.storage.volumes.errors import volume_errors
from plasmavmc.types import MIB

BLOCK = 64 * 1024
"""The last one of a volume may be shorter."""
SILENT_S = 5.0
"""A sender says nothing for so long at most, beside one block's reading: a part of what the least patient reader waits, and
seldom enough that what it says to be heard hardly adds to what differs."""
_MAGIC = b"SWGSNAP1"
_HEADER = struct.Struct(">8sQB")
_NUMBER = struct.Struct(">QI")
_END = 2**64 - 1
_SEALED, _BASED = 1, 2
_BATCH = MIB


@dataclass(frozen=True, slots=True)
class Header:
    size_bytes: int
    """As stored."""
    sealed: bool
    based: bool


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    content: bytes
    differs: bool
    """The receiver does not have it; what he has may be said again."""


async def send(
    new: int, old: int | None, *, sealed: bool, clock: Callable[[], float] = time.monotonic
) -> AsyncGenerator[bytes]:
    """The stream by which `new` is made of `old` (None: of nothing); both are open for reading. `clock` is monotonic, in
    seconds: see `SILENT_S`. No thread reads them any more when this has ended, also by cancellation.

    Raises:
        HostError: `storage-error`, one of them cannot be read.
    """
    with volume_errors("read a snapshot"):
        size = os.fstat(new).st_size
    yield _HEADER.pack(_MAGIC, size, _SEALED * sealed | _BASED * (old is not None))
    parts, left = _parts(new, old, size), threading.Event()
    while piece := await _told(parts, clock, left):
        yield piece


async def _told(parts: Iterator[_Part], clock: Callable[[], float], left: threading.Event) -> bytes:
    with volume_errors("read a snapshot"):
        return await to_its_end(asyncio.to_thread(_piece, parts, clock, left), stop=left.set)


def _piece(parts: Iterator[_Part], clock: Callable[[], float], left: threading.Event) -> bytes:
    """The next; empty at the end. In a thread, which ends soon when the reader has `left`."""
    piece, due = bytearray(), clock() + SILENT_S
    for part in parts:
        late = clock() >= due
        if part.differs or (late and not piece):
            piece += _NUMBER.pack(part.number, len(part.content)) + part.content
        if left.is_set() or len(piece) >= _BATCH or (late and piece):
            break
    return bytes(piece)


def _parts(new: int, old: int | None, size: int) -> Iterator[_Part]:
    total = hashlib.sha256()
    numbers = _blocks(new) if old is None else _either(_blocks(new), _blocks(old))
    for number in takewhile(lambda number: number * BLOCK < size, numbers):
        block = _read(new, number, size)
        before = bytes(len(block)) if old is None else _read(old, number, size)
        _add(total, number, block)
        yield _Part(number, block, block != before)
    yield _Part(_END, total.digest(), differs=True)


def digest(file: int, size_bytes: int) -> bytes:
    """The sum at the stream's end, of what a file of this size holds; blocking. Raises `OSError`."""
    total = hashlib.sha256()
    for number in _blocks(file):
        _add(total, number, _read(file, number, size_bytes))
    return total.digest()


def _add(total: hashlib._Hash, number: int, block: bytes) -> None:
    if block.strip(b"\0"):
        total.update(_NUMBER.pack(number, len(block)) + block)


def _blocks(file: int) -> Iterator[int]:
    """Numbers of the blocks that have data, in order."""
    last = -1
    for start, end in data_ranges(file):
        for number in range(max(last + 1, start // BLOCK), -(-end // BLOCK)):
            last = number
            yield number


def _either(left: Iterator[int], right: Iterator[int]) -> Iterator[int]:
    return (number for number, _ in groupby(heapq.merge(left, right)))


def _read(file: int, number: int, size_bytes: int) -> bytes:
    """A block; zeros where the file ends before its size, nothing beyond that."""
    wanted = max(0, min(BLOCK, size_bytes - number * BLOCK))
    return read_range(file, wanted, number * BLOCK).ljust(wanted, b"\0")


class Incoming:
    """A stream that is read: its header first (`open`), then its blocks (`fill`)."""

    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = aiter(stream)
        self._left = bytearray()
        self._total = b""
        self._header = Header(0, sealed=False, based=False)

    async def open(self) -> Header:
        """Read the header. Raises `InvalidSpecError` for what is none; `UnavailableError`, `stream-cut`."""
        magic, size, flags = _HEADER.unpack(await self._take(_HEADER.size))
        if magic != _MAGIC or flags > _SEALED | _BASED:
            raise InvalidSpecError("stream", "this is no snapshot on its way")
        self._header = Header(size, sealed=bool(flags & _SEALED), based=bool(flags & _BASED))
        return self._header

    @property
    def digest(self) -> str:
        """The sum at the end, in hexadecimal; empty before."""
        return self._total.hex()

    async def blocks(self) -> AsyncGenerator[Extent]:
        """What is to be laid over the earlier one. Raises as `open`."""
        while True:
            number, length = _NUMBER.unpack(await self._take(_NUMBER.size))
            if number == _END and length == hashlib.sha256().digest_size:
                self._total = await self._take(length)
                return
            at = number * BLOCK
            if at >= self._header.size_bytes or length != min(BLOCK, self._header.size_bytes - at):
                raise InvalidSpecError("stream", f"block {number} is not one of this snapshot")
            yield at, await self._take(length)

    def check(self, file: int) -> None:
        """All was laid, and the whole is what was sent; blocking. Raises `InvalidSpecError`; `OSError`."""
        if digest(file, self._header.size_bytes) != self._total:
            raise InvalidSpecError("stream", "what it makes here is not what was sent: the earlier snapshots differ")

    async def _take(self, size: int) -> bytes:
        while len(self._left) < size:
            part = await anext(self._stream, b"")
            if not part:
                raise UnavailableError("stream-cut", "the snapshot ended on its way", resolution="Send it again.")
            self._left += part
        taken = bytes(self._left[:size])
        del self._left[:size]
        return taken
