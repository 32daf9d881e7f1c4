"""Snapshots on their way to another node, as a stream of bytes that any driver writes and any driver reads.

    header    magic, size in bytes, flags: sealed, based on an earlier snapshot
    block     its number, and what is in it where that differs from the earlier one (or from zeros); many of them
    end       SHA-256 over all blocks that are not zeros, each with its number: of the whole, and not of what was sent

Theory. The sender has both snapshots and reads what either has as data. The receiver lays the blocks over its copy of the
earlier one, and reads the whole back before it has a name: where the sums differ, because the two had not begun with the
same, nothing is kept. Numbers are big-endian. What is sealed goes as it lies; nobody on the way needs its key.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import os
import struct
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Iterator
from dataclasses import dataclass
from itertools import groupby

from plasmavmc.errors import InvalidSpecError, UnavailableError
from plasmavmc.host.threads import in_thread
from plasmavmc.storage.sparse import data_ranges, read_range
from plasmavmc.storage.volumes.content import Extent, Feed
from plasmavmc.storage.volumes.errors import volume_errors
from plasmavmc.types import MIB

BLOCK = 64 * 1024
"""The last one of a volume may be shorter."""
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


async def send(new: int, old: int | None, *, sealed: bool) -> AsyncGenerator[bytes]:
    """The stream by which `new` is made of `old` (None: of nothing); both are open for reading.

    Raises:
        HostError: `storage-error`, one of them cannot be read.
    """
    parts = _parts(new, old, sealed=sealed)
    while part := await _told(parts):
        yield part


async def _told(parts: Iterator[bytes]) -> bytes:
    with volume_errors("read a snapshot"):
        return await in_thread(_batch, parts)


def _batch(parts: Iterator[bytes]) -> bytes:
    batch = bytearray()
    while len(batch) < _BATCH and (part := next(parts, None)) is not None:
        batch += part
    return bytes(batch)


def _parts(new: int, old: int | None, *, sealed: bool) -> Iterator[bytes]:
    size = os.fstat(new).st_size
    yield _HEADER.pack(_MAGIC, size, _SEALED * sealed | _BASED * (old is not None))
    total = hashlib.sha256()
    for number in _blocks(new) if old is None else _either(_blocks(new), _blocks(old)):
        block = _read(new, number, size)
        before = bytes(len(block)) if old is None else _read(old, number, size)
        _add(total, number, block)
        if block != before:
            yield _NUMBER.pack(number, len(block)) + block
    yield _NUMBER.pack(_END, total.digest_size) + total.digest()


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


async def fed(feed: Feed, work: Coroutine[None, None, None]) -> None:
    """Do what a feed fills; a caller who is cancelled stops the feed, and waits for the end."""
    made = asyncio.ensure_future(work)
    try:
        await asyncio.shield(made)
    except asyncio.CancelledError:
        feed.stop()
        await asyncio.wait({made})
        if not made.cancelled():
            made.exception()  # seen; the caller gets the cancellation
        raise
