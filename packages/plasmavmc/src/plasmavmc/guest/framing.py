"""Frames of the guest channel and how a byte pipe finds its footing again. Pure; the protocol is told in
docs/design/guest-channel.md, the other side is native/init/frame.c.

A frame is {u32 payload length, u16 type, u16 stream, u32 crc32 of the first eight bytes and the payload}, little-endian,
then the payload. Structured payloads are fields of {u16 tag, u32 length, bytes}.

What comes from a guest is hostile: a length is bounded before anything is kept for it, and a frame that is not sound ends
the channel. Before the answer to our own sync everything is passed over: it was meant for a host side that is gone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from plasmavmc.errors import GuestError

HEADER = struct.Struct("<IHHI")
MAX_PAYLOAD = 64 * 1024
MAGIC = b"\xf5swg-guest-sync1"
NONCE_BYTES = 16
_CHECKED = struct.Struct("<IHH")
_FIELD = struct.Struct("<HI")

FLUSH = bytes(HEADER.size + MAX_PAYLOAD)
"""Zeros that complete any half-read frame. The first header of zeros after that sends the guest hunting for the magic."""


class FrameType(IntEnum):
    CONFIG_PART = 1
    CONFIG_END = 2
    ACK = 3
    STOP = 4
    SEEN_END = 5
    FREEZE = 6
    THAW = 7
    ORDER = 8
    EXEC_START = 16
    STDIN = 17
    STDIN_EOF = 18
    RESIZE = 19
    SIGNAL = 20
    HANG_UP = 21
    COPY_IN = 22
    COPY_OUT = 23
    CREDIT = 32
    HELLO = 64
    READY = 65
    FAILED = 66
    EXITED = 67
    OUTPUT = 68
    FROZEN = 69
    THAWED = 70
    ORDERED = 71
    EXEC_STARTED = 80
    EXEC_REFUSED = 81
    EXEC_OUTPUT = 82
    EXEC_EXIT = 83


@dataclass(frozen=True, slots=True)
class Frame:
    type: int
    """A `FrameType`, or a number that a newer guest knows."""
    stream: int
    payload: bytes

    @property
    def cost(self) -> int:
        """What the frame takes from the credit of its stream: all of its bytes, so that crumbs are not free."""
        return HEADER.size + len(self.payload)


def encode(kind: FrameType, payload: bytes = b"", *, stream: int = 0) -> bytes:
    """One frame.

    Raises:
        GuestError: `frame-too-large`, more than 64 KiB of payload.
    """
    if len(payload) > MAX_PAYLOAD:
        raise GuestError("frame-too-large", f"a frame carries at most {MAX_PAYLOAD} bytes, not {len(payload)}")
    checked = _CHECKED.pack(len(payload), kind, stream)
    return checked + struct.pack("<I", zlib.crc32(payload, zlib.crc32(checked))) + payload


def sync(nonce: bytes, *, fresh: bool) -> bytes:
    """What a host side sends first. A guest that never heard a host has no half-read frame (`fresh`)."""
    return (b"" if fresh else FLUSH) + MAGIC + nonce


def sync_between_frames(nonce: bytes) -> bytes:
    """The same, for a guest that heard a host and has read its last frame whole: one header of zeros sends it hunting."""
    return bytes(HEADER.size) + MAGIC + nonce


class FrameDecoder:
    """Bytes in, frames out. Keeps at most one frame."""

    def __init__(self, nonce: bytes) -> None:
        self._answer = MAGIC + nonce
        self._pending = bytearray()
        self._synced = False

    @property
    def synced(self) -> bool:
        """Our nonce came back."""
        return self._synced

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now.

        Raises:
            GuestError: `bad-frame`. The channel cannot be used any more.
        """
        self._pending += data
        if not self._synced and not self._find_answer():
            return
        start = 0
        try:
            while (frame := self._frame_at(start)) is not None:
                start += frame.cost
                yield frame
        finally:
            del self._pending[:start]

    def _find_answer(self) -> bool:
        found = self._pending.find(self._answer)
        if found < 0:
            del self._pending[: -len(self._answer) + 1]
            return False
        del self._pending[: found + len(self._answer)]
        self._synced = True
        return True

    def _frame_at(self, start: int) -> Frame | None:
        if len(self._pending) - start < HEADER.size:
            return None
        length, kind, stream, crc = HEADER.unpack_from(self._pending, start)
        if length > MAX_PAYLOAD:
            raise GuestError("bad-frame", f"the guest announced a frame of {length} bytes")
        body = start + HEADER.size
        if len(self._pending) - body < length:
            return None
        payload = bytes(self._pending[body : body + length])
        if zlib.crc32(payload, zlib.crc32(self._pending[start : start + _CHECKED.size])) != crc:
            raise GuestError("bad-frame", "the guest sent a frame with a wrong checksum")
        return Frame(kind, stream, payload)


def put_field(tag: int, value: bytes) -> bytes:
    """One field of a structured payload."""
    return _FIELD.pack(tag, len(value)) + value


def fields(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a structured payload, as (tag, value).

    Raises:
        GuestError: `bad-frame`, a field that does not end within the payload.
    """
    position = 0
    while position < len(payload):
        if len(payload) - position < _FIELD.size:
            raise GuestError("bad-frame", "the guest sent a field without its length")
        tag, length = _FIELD.unpack_from(payload, position)
        position += _FIELD.size
        if length > len(payload) - position:
            raise GuestError("bad-frame", f"the guest sent a field of {length} bytes that is cut short")
        yield tag, payload[position : position + length]
        position += length
