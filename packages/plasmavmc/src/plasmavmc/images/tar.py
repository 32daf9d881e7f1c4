"""Reading tar as a stream: ustar, GNU and pax (POSIX.1-2001), with sparse files in all their forms. Strict.

Own code rather than `tarfile`, for three reasons: `tarfile` decodes names (a layer's names are bytes), it repairs and
guesses where we must refuse, and it needs ten times as long per member.

What is read of extended headers: path, linkpath, size, uid, gid, mtime, `SCHILY.xattr.*` and `GNU.sparse.*`. Global
headers are skipped, as container runtimes do. A block of zeros, or the end of the input, ends the archive; so the last
member may lack its padding, as a writer leaves it that was never closed (`umoci insert`).

Memory and time are bounded per member: what extended headers say before it, and its sparse map, are at most a mebibyte each.
What members cost together is for the caller to count (`Member.metadata_bytes`).

Traps. The size field of links, directories and devices means nothing: no data follows. A V7 archive marks a directory
by a slash at the end of its name. In GNU archives the prefix field holds other things. Sparse files in form 1.0 carry
their map in front of their data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import Protocol

from plasmavmc.images import sparse
from plasmavmc.images.limits import HEADER_BYTES, XATTR_BYTES
from plasmavmc.images.pax import bad_tar, parse_records
from plasmavmc.images.sparse import Segments

BLOCK = 512
_CHUNK = 256 * 1024
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_READ = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
_EXTENDED = frozenset({b"x", b"X", b"g", b"L", b"K"})
_EXTENDED_COUNT = 64
"""Extended headers before one member; tools write three at most, and a global one."""
_CHECKSUM_AS_SPACES = 8 * 0x20
_XATTR_COST = 128
"""Bytes of memory that an extended attribute takes beside its name and value."""
_SEGMENT_COST = 128
"""Bytes of memory of one run of a sparse file: two tuple slots, two numbers, its place among the others."""
_PAUSE_BYTES = 8 * 1024 * 1024
_PAUSE_STEPS = 512


class Kind(Enum):
    """What a member is; the value is its type flag in a tar header that we write."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


_KINDS = {kind.value: kind for kind in Kind} | {b"\0": Kind.FILE, b"7": Kind.FILE, b"S": Kind.FILE}


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive. Names are bytes, as the archive has them."""

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    """As a reader sees the file, holes included."""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    segments: Segments | None = None
    """Where the stored data of a sparse file belongs; None for an ordinary file."""
    offset: int = 0
    """Where its data starts in the archive."""
    stored: int = 0
    """Bytes of data in the archive."""

    @property
    def metadata_bytes(self) -> int:
        """What it takes in memory, about, beyond what every member takes."""
        attributes = sum(_XATTR_COST + len(key) + len(value) for key, value in self.xattrs)
        return len(self.name) + len(self.link) + attributes + _SEGMENT_COST * len(self.segments or ())


class ByteStream(Protocol):
    def read(self, count: int, /) -> bytes:
        """At most `count` bytes; empty at the end."""


@dataclass(slots=True)
class _Extended:
    """What extended headers said about the member that follows them; of records only those that are read."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    sparse_pairs: list[bytes] = field(default_factory=list)
    """Values of `GNU.sparse.offset` and `GNU.sparse.numbytes` in order: in form 0.0 the keys repeat."""
    _count: int = 0
    _bytes: int = 0

    def admit(self, size: int) -> int:
        """Return the size of one more header, global ones included, if it may come before the same member."""
        self._count += 1
        self._bytes += max(size, 0)
        if size < 0 or self._bytes > HEADER_BYTES:
            raise bad_tar(f"extended headers of {self._bytes} bytes before a member; at most {HEADER_BYTES} are taken")
        if self._count > _EXTENDED_COUNT:
            raise bad_tar(f"more than {_EXTENDED_COUNT} extended headers before a member")
        return size

    def add(self, flag: bytes, data: bytes) -> None:
        match flag:
            case b"L":
                self.records[b"path"] = data.rstrip(b"\0")
            case b"K":
                self.records[b"linkpath"] = data.rstrip(b"\0")
            case b"x" | b"X":
                self._add_records(data)
            case _:
                pass  # a global header, which container runtimes skip

    def _add_records(self, data: bytes) -> None:
        for key, value in parse_records(data):
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                self.sparse_pairs.append(value)
            elif key not in _READ and not key.startswith((_XATTR, _SPARSE)):
                continue
            elif value:
                self.records[key] = value
            else:
                self.records.pop(key, None)

    def number(self, key: bytes, default: int) -> int:
        """A decimal value; fractions of a second are cut off."""
        text = self.records.get(key)
        if text is None:
            return default
        whole = text.partition(b".")[0]
        if not whole.removeprefix(b"-").isdigit() or len(whole) > 20:
            raise bad_tar(f"pax {key.decode()} is not a number")
        return int(whole)

    @property
    def xattrs(self) -> tuple[tuple[bytes, bytes], ...]:
        found = sorted((key[len(_XATTR) :], value) for key, value in self.records.items() if key.startswith(_XATTR))
        if any(len(value) > XATTR_BYTES or not 0 < len(key) <= 255 or b"\0" in key for key, value in found):
            raise bad_tar("an extended attribute is longer than Linux allows")
        return tuple(found)


class TarReader:
    """Members in the order of the archive. The data of the current one may be read with `data`; `skip` it otherwise."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._position = 0
        self._at = 0
        self._left = 0
        """Data of the current member that is not read yet, padding included."""
        self._padding = 0
        """How much of it is padding."""

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            self._left = _padded(member.stored)
            self._padding = self._left - member.stored
            yield member
            for _ in self.skip():
                pass

    @property
    def position(self) -> int:
        """Bytes of the archive that were read."""
        return self._position

    def skip(self) -> Iterator[int]:
        """Pass over the rest of the current member's data, in steps; yields the size of each."""
        while self._left:
            if self._left <= self._padding and not self._fill():
                self._left = 0
                return
            chunk = self._some(self._left)
            self._left -= len(chunk)
            yield len(chunk)

    def data(self, member: Member) -> Iterator[bytes]:
        """The content of the current member, holes filled with zeros."""
        if member.segments is None:
            yield from self._stored(member.stored)
            return
        at = 0
        for offset, length in member.segments:
            yield from sparse.zeros(offset - at)
            yield from self._stored(length)
            at = offset + length
        yield from sparse.zeros(member.size - at)

    def drain(self) -> Iterator[int]:
        """Read the stream to its end after the last member, in steps."""
        self._buffer, self._at = b"", 0
        while chunk := self._stream.read(_CHUNK):
            self._position += len(chunk)
            yield len(chunk)

    # Headers

    def _next(self) -> Member | None:
        extended = _Extended()
        while (block := self._header_block()) is not None:
            fields = _HEADER.unpack(block)
            flag, size = fields[7], _number(fields[4], "size")
            if flag not in _EXTENDED:
                return self._member(block, fields, extended)
            extended.add(flag, self._payload(extended.admit(size)))
        return None  # of whom extended headers are told that did not come, as container runtimes see it, is nobody

    def _member(self, block: bytes, fields: tuple[bytes, ...], extended: _Extended) -> Member:
        kind = _KINDS.get(fields[7])
        if kind is None:
            raise bad_tar(f"unknown entry type {fields[7]!r}")
        name = _name(fields, extended)
        if kind is Kind.FILE and name.endswith(b"/"):
            kind = Kind.DIRECTORY
        segments, size, stored = self._extent(block, kind, extended)
        return Member(
            name=name,
            kind=kind,
            mode=_number(fields[1], "mode") & 0o7777,
            uid=_owner(extended.number(b"uid", _number(fields[2], "uid"))),
            gid=_owner(extended.number(b"gid", _number(fields[3], "gid"))),
            mtime=extended.number(b"mtime", _number(fields[5], "mtime")),
            size=size,
            link=extended.records.get(b"linkpath") or fields[8].partition(b"\0")[0],
            device=_device(kind, fields),
            xattrs=extended.xattrs,
            segments=segments,
            offset=self._position,
            stored=stored,
        )

    def _extent(self, block: bytes, kind: Kind, extended: _Extended) -> tuple[Segments | None, int, int]:
        """The sparse map of a file (wherever its archive keeps that), its size, and its stored bytes."""
        if kind is not Kind.FILE:
            return None, 0, 0
        records = extended.records
        stored = extended.number(b"size", _number(block[124:136], "size"))
        if stored < 0:
            raise bad_tar("a negative size")
        if block[156:157] == b"S":
            segments, size = self._old_gnu_map(block)
        elif records.get(b"GNU.sparse.major") == b"1":
            segments, map_bytes = self._leading_map(stored)
            size, stored = extended.number(b"GNU.sparse.realsize", -1), stored - map_bytes
        elif b"GNU.sparse.map" in records or extended.sparse_pairs:
            texts = records[b"GNU.sparse.map"].split(b",") if b"GNU.sparse.map" in records else extended.sparse_pairs
            segments, size = sparse.pairs(texts), extended.number(b"GNU.sparse.size", -1)
        else:
            return None, stored, stored
        sparse.check(segments, size, stored)
        return segments, size, stored

    def _old_gnu_map(self, block: bytes) -> tuple[Segments, int]:
        size = _number(block[483:495], "real size")
        parts, more = [block[386:482]], block[482]
        while more:
            if len(parts) * BLOCK > HEADER_BYTES:
                raise bad_tar("a sparse map is too long")
            extension = self._exactly(BLOCK)
            parts.append(extension[:504])
            more = extension[504]
        cells = b"".join(parts)
        numbers = [cells[start : start + 12] for start in range(0, len(cells), 12)]
        used = [_number(cell, "sparse map") for cell in numbers if cell.strip(b"\0 ")]
        return sparse.paired(used), size

    def _leading_map(self, stored: int) -> tuple[Segments, int]:
        """The map of form 1.0: decimal lines in front of the data (their count of pairs first), padded to a block."""
        text, ended, wanted = bytearray(), 0, 1
        while ended < wanted:
            if len(text) >= min(stored, HEADER_BYTES):
                raise bad_tar("a sparse map is cut off or too long")
            block = self._exactly(BLOCK)
            is_first = not ended
            text += block
            ended += block.count(b"\n")
            if is_first and ended:
                wanted = 1 + 2 * sparse.decimal(bytes(text[: text.index(b"\n")]))
        return sparse.pairs(bytes(text).split(b"\n", wanted)[1:wanted]), len(text)

    # Bytes

    def _header_block(self) -> bytes | None:
        """The next header; None at the end of the archive."""
        if not self._fill():
            return None
        block = self._exactly(BLOCK)
        if not block.strip(b"\0"):
            return None
        if sum(block) - sum(block[148:156]) + _CHECKSUM_AS_SPACES != _number(block[148:156], "checksum"):
            raise bad_tar("a header has the wrong checksum")
        return block

    def _payload(self, size: int) -> bytes:
        return self._exactly(_padded(size))[:size]

    def _stored(self, count: int) -> Iterator[bytes]:
        while count:
            chunk = self._some(count)
            count -= len(chunk)
            self._left -= len(chunk)
            yield chunk

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            parts.append(self._some(count))
            count -= len(parts[-1])
        return b"".join(parts)

    def _some(self, count: int) -> bytes:
        """From 1 to `count` bytes."""
        if not self._fill():
            raise bad_tar("it is cut off")
        chunk = self._buffer[self._at : self._at + count]
        self._at += len(chunk)
        self._position += len(chunk)
        return chunk

    def _fill(self) -> bool:
        """Have at least one byte in the buffer; False at the end of the stream."""
        if self._at == len(self._buffer):
            self._buffer, self._at = self._stream.read(_CHUNK), 0
        return bool(self._buffer)


class Pauses:
    """Chances to stop while an archive is read: one after every few megabytes, or few hundred members or chunks."""

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader
        self._at = 0
        self._steps = 0

    def over(self, passed: Iterable[int]) -> Iterator[bytes]:
        """Do the steps of `skip` or `drain`, which may be none; yields nothing but empty chunks."""
        for _ in chain(passed, (0,)):
            self._steps += 1
            if self._steps >= _PAUSE_STEPS or self._reader.position - self._at >= _PAUSE_BYTES:
                self._at, self._steps = self._reader.position, 0
                yield b""


def _name(fields: tuple[bytes, ...], extended: _Extended) -> bytes:
    """The full name: sparse name, extended header, or prefix and name of a POSIX header."""
    records = extended.records
    if b"GNU.sparse.name" in records:
        return records[b"GNU.sparse.name"]
    if b"path" in records:
        return records[b"path"]
    name, prefix = fields[0].partition(b"\0")[0], fields[14].partition(b"\0")[0]
    is_posix = fields[9].startswith(b"ustar\0")
    return prefix + b"/" + name if is_posix and prefix else name


def _device(kind: Kind, fields: tuple[bytes, ...]) -> tuple[int, int]:
    """Major and minor number, as wide as Linux has them (12 and 20 bits)."""
    if kind not in (Kind.CHARACTER, Kind.BLOCK):
        return 0, 0
    major, minor = _number(fields[12], "device major"), _number(fields[13], "device minor")
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise bad_tar("a device number is out of range")
    return major, minor


def _owner(number: int) -> int:
    """A user or group number. 2^32 - 1 is the kernel's "no change", and no owner."""
    if not 0 <= number < (1 << 32) - 1:
        raise bad_tar(f"the owner {number} is out of range")
    return number


def _number(text: bytes, what: str) -> int:
    """A numeric field: octal digits, or GNU's base 256 where the first bit is set."""
    if text[0] & 0x80:
        negative = text[0] & 0x40
        value = int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
        return value - (1 << (8 * len(text) - 1)) if negative else value
    digits = text.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if digits.translate(None, b"01234567"):
        raise bad_tar(f"the {what} field is not a number")
    return int(digits, 8)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
