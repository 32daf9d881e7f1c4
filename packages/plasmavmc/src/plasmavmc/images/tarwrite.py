"""Writing tar members for `tar2sqfs`: ustar with pax records where a field is too narrow. Pure, deterministic.

squashfs keeps times as unsigned 32-bit seconds, so times are cut to that range here rather than by accident there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from plasmavmc.images.pax import format_records
from plasmavmc.images.tar import BLOCK, Kind, Member

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_OWNER_MAX = 0o7777777
_SIZE_MAX = 0o77777777777
_TIME_MAX = (1 << 32) - 1
END = bytes(2 * BLOCK)
"""What ends an archive."""


def header(member: Member, name: bytes, link: bytes = b"") -> bytes:
    """The header of a member under a (merged) name; `link` is the target of a symbolic or hard link."""
    records = tuple(_records(member, name, link))
    block = _block(member, name, link)
    if not records:
        return block
    data = format_records(records)
    carrier = Member(name=b"pax", kind=Kind.FILE, size=len(data))
    return _block(carrier, b"pax", b"", flag=b"x") + data + padding(len(data)) + block


def padding(size: int) -> bytes:
    """The zeros after `size` bytes of data."""
    return bytes(-size % BLOCK)


def _records(member: Member, name: bytes, link: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(name) > 100:
        yield b"path", name
    if len(link) > 100:
        yield b"linkpath", link
    if member.uid > _OWNER_MAX:
        yield b"uid", b"%d" % member.uid
    if member.gid > _OWNER_MAX:
        yield b"gid", b"%d" % member.gid
    if member.size > _SIZE_MAX:
        yield b"size", b"%d" % member.size
    for key, value in member.xattrs:
        yield b"SCHILY.xattr." + key, value


def _block(member: Member, name: bytes, link: bytes, flag: bytes = b"") -> bytes:
    major, minor = member.device
    block = bytearray(
        _HEADER.pack(
            name[:100],
            _octal(member.mode, 8),
            _octal(min(member.uid, _OWNER_MAX), 8),
            _octal(min(member.gid, _OWNER_MAX), 8),
            _octal(min(member.size, _SIZE_MAX), 12),
            _octal(min(max(member.mtime, 0), _TIME_MAX), 12),
            b" " * 8,
            flag or member.kind.value,
            link[:100],
            b"ustar\0",
            b"00",
            b"",
            b"",
            _octal(major, 8),
            _octal(minor, 8),
            b"",
        )
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)
