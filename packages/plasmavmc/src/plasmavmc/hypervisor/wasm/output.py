"""What a module wrote and the host has not stored yet: a ring of 1 MiB, the oldest dropped first.

Bytes of both streams are counted by one number, so that the host sees by a gap what was dropped. Written by the module's
thread, read by the event loop.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from plasmavmc.types import MIB, LogStream

RING_BYTES = MIB
_PIECE = 16 * 1024


@dataclass(slots=True)
class _Piece:
    stream: LogStream
    offset: int
    data: bytearray

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class OutputRing:
    """See the module's head. Offsets are absolute."""

    def __init__(self) -> None:
        self._pieces: deque[_Piece] = deque()
        self._lock = threading.Lock()
        self._end = 0

    @property
    def start(self) -> int:
        """The number of the first byte that is still kept."""
        with self._lock:
            return self._pieces[0].offset if self._pieces else self._end

    @property
    def end(self) -> int:
        return self._end

    def write(self, stream: LogStream, data: bytes) -> None:
        """Take what was written; never waits."""
        with self._lock:
            for begin in range(0, len(data), _PIECE):
                self._add(stream, data[begin : begin + _PIECE])
            while self._end - self._pieces[0].offset > RING_BYTES if self._pieces else False:
                self._pieces.popleft()

    def _add(self, stream: LogStream, data: bytes) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.stream is stream and len(last.data) + len(data) <= _PIECE:
            last.data += data
        else:
            self._pieces.append(_Piece(stream, self._end, bytearray(data)))
        self._end += len(data)

    def read(self, offset: int, most: int) -> tuple[LogStream, int, bytes] | None:
        """The next bytes of one stream from `offset` on, at most `most`; None where there are none yet."""
        with self._lock:
            for piece in self._pieces:
                if piece.end > offset:
                    begin = max(0, offset - piece.offset)
                    return piece.stream, piece.offset + begin, bytes(piece.data[begin : begin + most])
        return None

    def acknowledge(self, offset: int) -> None:
        """The host has stored all before `offset`."""
        with self._lock:
            while self._pieces and self._pieces[0].end <= offset:
                self._pieces.popleft()
