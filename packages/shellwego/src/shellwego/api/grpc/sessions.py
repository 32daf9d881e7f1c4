"""A stream to a node as a session of the services: a command in a guest, its workload itself, a copy of files."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import aclosing

from plasmavmc.errors import GuestError
from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.types import LogStream, TerminalSize
from shellwego.api.grpc.callers import Callers
from shellwego.api.grpc.errors import translated
from shellwego.control.streams import records
from shellwego.control.targets import InstanceTarget
from shellwego.core.errors import ShellWeGoError
from shellwego.ports.streams import DuplexStream
from shellwego.wire.streams import Record, RecordKind, pack

_CHUNK = 16 * 1024
_SIZE = struct.Struct("!HH")
_EXIT = struct.Struct("!i")
_OUTPUT = {RecordKind.STDOUT: LogStream.STDOUT, RecordKind.STDERR: LogStream.STDERR}


class StreamSession:
    """See `plasmavmc.guest.api.ExecSession`. Its output ends, by an error, with its caller's right to it."""

    def __init__(self, stream: DuplexStream, callers: Callers, target: InstanceTarget) -> None:
        self._stream = stream
        self._callers = callers
        self._target = target

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), _CHUNK):
            await self._put(Record(RecordKind.STDIN, data[start : start + _CHUNK]))

    async def send_eof(self) -> None:
        await self._put(Record(RecordKind.STDIN_EOF))

    async def resize(self, size: TerminalSize) -> None:
        await self._put(Record(RecordKind.RESIZE, _SIZE.pack(size.rows, size.columns)))

    async def signal(self, number: int) -> None:
        await self._put(Record(RecordKind.SIGNAL, bytes([number])))

    async def _put(self, record: Record) -> None:
        try:
            await self._stream.send(pack(record))
        except ShellWeGoError as error:
            raise GuestError("guest-gone", error.message) from error

    async def output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        with translated():
            async with aclosing(self._callers.while_valid(records(self._stream), self._target)) as incoming:
                async for record in incoming:
                    if record.kind is RecordKind.EXIT:
                        yield ExecExit(_EXIT.unpack(record.payload)[0])
                        return
                    if record.kind in _OUTPUT:
                        yield ExecOutput(_OUTPUT[record.kind], record.payload)
        raise GuestError("guest-gone", "the stream ended before the command did")

    async def aclose(self) -> None:
        await self._stream.aclose()
