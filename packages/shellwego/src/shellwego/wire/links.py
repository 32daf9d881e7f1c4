"""Frames on the link between a server and a node or edge: many streams and hints on one connection that the node dialled.

A frame is one message: its kind, the number of its stream, its payload. Only servers open streams, with rising numbers.

Credit. Each direction of a stream begins with `INITIAL_CREDIT` bytes that may be sent; the receiver gives more as its reader
takes what came. So a reader that stalls stops its own stream and nothing else, and nobody can be made to hold more than was
granted. Whoever sends beyond it, or says what is not in this table, loses the link.

| kind | stream | payload | from |
|---|---|---|---|
| OPEN | new | a `ports.streams.StreamRequest` in `wire.codec` form | server |
| DATA | open | 1 to `MAX_PIECE` bytes | both |
| CREDIT | open | so many bytes more, a big-endian u32 | both |
| EOF | open | –: nothing more will be sent on it | both |
| END | open | –: it was served; what came may be read to its end | node |
| RESET | open | why it broke, UTF-8; what is under way is lost | both |
| HINT | 0 | a subject: look again | server |
| BEAT | 0 | –: still here | both |
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

MAX_PIECE = 32 * 1024
MAX_FRAME = 256 * 1024
"""Of an OPEN with a long command."""
INITIAL_CREDIT = 32 * 1024
MAX_REASON = 500
BEAT_S = 1.2
SILENT_BEATS = 3
"""So many beats without a frame, and the link is dead: it is noticed within 5 s."""
_HEADER = struct.Struct("!BI")
_CREDIT = struct.Struct("!I")


class FrameKind(IntEnum):
    OPEN = 0
    DATA = 1
    CREDIT = 2
    EOF = 3
    END = 4
    RESET = 5
    HINT = 6
    BEAT = 7


@dataclass(frozen=True, slots=True)
class Frame:
    kind: FrameKind
    stream: int = 0
    payload: bytes = b""


class FrameError(ValueError):
    """The other side said what it may not."""


class FrameSocket(Protocol):
    """A connection that carries messages."""

    async def send(self, message: bytes) -> None:
        """Send one; waits while the connection is congested. Raises `ConnectionError` where it is gone."""

    async def receive(self) -> bytes:
        """The next one. Raises `ConnectionError` at the end."""

    async def close(self) -> None:
        """End it now, whatever is under way."""


class Links(Protocol):
    """A server's end of links."""

    async def carry(self, peer_id: str, socket: FrameSocket, hints: AsyncIterator[str]) -> None:
        """Serve the link to a node or edge until it ends; a former link of the same peer ends. `hints` are subjects."""


def pack(frame: Frame) -> bytes:
    """A frame as a message."""
    return _HEADER.pack(frame.kind, frame.stream) + frame.payload


def unpack(message: bytes) -> Frame:
    """Parse a message.

    Raises:
        FrameError: it is no frame, or a longer one than its kind may be.
    """
    if len(message) < _HEADER.size:
        raise FrameError("a frame without a head")
    kind, stream = _HEADER.unpack_from(message)
    payload = message[_HEADER.size :]
    limit = _LIMITS.get(kind, -1)
    if len(payload) > limit:
        raise FrameError(f"a frame of kind {kind} with {len(payload)} bytes")
    return Frame(FrameKind(kind), stream, payload)


_LIMITS: dict[int, int] = {
    FrameKind.OPEN: MAX_FRAME,
    FrameKind.DATA: MAX_PIECE,
    FrameKind.CREDIT: _CREDIT.size,
    FrameKind.EOF: 0,
    FrameKind.END: 0,
    FrameKind.RESET: 4 * MAX_REASON,
    FrameKind.HINT: 256,
    FrameKind.BEAT: 0,
}


def credit(count: int) -> bytes:
    """The payload of CREDIT."""
    return _CREDIT.pack(count)


def credit_of(payload: bytes) -> int:
    """What a CREDIT gives.

    Raises:
        FrameError: it is none.
    """
    if len(payload) != _CREDIT.size:
        raise FrameError("a credit that is no number")
    count: int = _CREDIT.unpack(payload)[0]
    return count
