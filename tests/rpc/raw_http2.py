"""A client of HTTP/2 that reads nothing: its window is 0, so that no byte of an answer's body may be sent to it.

Only what such a client needs of RFC 9113 and RFC 7541: frames that are written, headers as literals.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4
NO_MESSAGE = b"\0\0\0\0\0"
"""An empty gRPC message."""


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def _literal(name: str, value: str) -> bytes:
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class ClosedWindow:
    """See the module's head."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next = 1

    @classmethod
    async def connect(cls, path: Path) -> ClosedWindow:
        made = cls(*await asyncio.open_unix_connection(path))
        made._writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)))
        return made

    def call(self, method: str, message: bytes | None = NO_MESSAGE) -> int:
        """Call a method, such as `/package.Service/Method`; None: the request never comes. Returns the stream's number."""
        stream, self._next = self._next, self._next + 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = b"".join(_literal(name, value) for name, value in fields.items())
        self._writer.write(_frame(_HEADERS, _END_HEADERS, stream, block))
        if message is not None:
            self._writer.write(_frame(_DATA, _END_STREAM, stream, message))
        return stream

    async def begun(self, stream: int) -> None:
        """Return when the head of an answer came: the server is at work on the call."""
        async with asyncio.timeout(10):
            while True:
                head = await self._reader.readexactly(9)
                await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, number = head[3], int.from_bytes(head[5:], "big")
                if (kind, number) == (_HEADERS, stream):
                    return
                if kind == _SETTINGS and not head[4]:
                    self._writer.write(_frame(_SETTINGS, 1, 0, b""))

    def close(self) -> None:
        self._writer.close()
