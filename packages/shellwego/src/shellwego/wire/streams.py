"""The meaning of the bytes on an exec or log stream: records of a kind, a length and a payload.

The same records travel as binary WebSocket messages between API and CLI (any cut of the bytes is allowed). `MAX_PAYLOAD`
bounds what a hostile peer can make us hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

MAX_PAYLOAD = 64 * 1024
_HEADER = struct.Struct("!BI")


class RecordKind(IntEnum):
    STDIN = 0
    STDIN_EOF = 1
    RESIZE = 2
    """Payload: rows and columns, two big-endian u16."""
    SIGNAL = 3
    """Payload: one byte, the signal's number."""
    STDOUT = 4
    STDERR = 5
    EXIT = 6
    """Payload: the exit code, a big-endian i32. Last record of an exec stream."""
    ERROR = 7
    """Payload: `code` NUL `message`, UTF-8. Last record of a failed stream."""
    LOG = 8
    """Payload: a `ports.engine.LogRecord` in `wire.codec` form."""
    USAGE = 9
    """Payload: a `core.vms.VmUsage` in `wire.codec` form."""


@dataclass(frozen=True, slots=True)
class Record:
    kind: RecordKind
    payload: bytes = b""


class RecordError(ValueError):
    """The peer sent something that is not a record."""


def pack(record: Record) -> bytes:
    """A record as bytes; the payload has at most `MAX_PAYLOAD` bytes."""
    return _HEADER.pack(record.kind, len(record.payload)) + record.payload


class RecordReader:
    """Cuts a byte stream into records."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Record]:
        """Take some bytes; yields the records that are complete.

        Raises:
            RecordError: an unknown kind, or a payload over the limit.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD or kind not in RecordKind.__members__.values():
                raise RecordError(f"record of kind {kind} with {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Record(RecordKind(kind), payload)
