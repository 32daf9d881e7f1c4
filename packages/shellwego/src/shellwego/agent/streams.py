"""Serves streams to the VMs of this node: exec, and logs that go on from one attempt of an instance to the next.

What comes in was written by a user and is cut into records with bounds; what goes out was written by a guest and is cut to
them. A stream that fails ends with an error record, so that the reader learns why; one that is cancelled (its client left)
takes the guest's process with it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import structlog

from shellwego.agent.waiting import cancel_all
from shellwego.core.errors import NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.vms import VmView
from shellwego.ports.engine import Engine, ExecChannel, ExecDone, LogRecord
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest
from shellwego.wire.codec import encode
from shellwego.wire.streams import MAX_PAYLOAD, Record, RecordError, RecordKind, RecordReader, pack

MAX_STREAMS = 256
MAX_TAIL = 10_000
_MAX_TEXT = 15_000
"""Characters of a log line, so that four bytes each fit a record."""
_SIZE = struct.Struct("!HH")
_EXIT = struct.Struct("!i")
_OUTPUT = {"stdout": RecordKind.STDOUT, "stderr": RecordKind.STDERR}

_log = structlog.get_logger(__name__)

FindVm = Callable[[str], VmView | None]
Successor = Callable[[VmView], Awaitable[VmView | None]]


class StreamServer:
    """Serves one request at a call, at most `limit` at once. `find` gives the newest VM of an instance, `successor` waits
    for the next."""

    def __init__(self, engine: Engine, find: FindVm, successor: Successor, limit: int = MAX_STREAMS) -> None:
        self._engine = engine
        self._find = find
        self._successor = successor
        self._limit = limit
        self._open = 0

    async def serve(self, request: StreamRequest, stream: DuplexStream) -> None:
        """See `ports.streams.StreamHandler`."""
        self._open += 1
        try:
            await self._serve(request, stream)
            await stream.send_eof()
        finally:
            self._open -= 1

    async def _serve(self, request: StreamRequest, stream: DuplexStream) -> None:
        try:
            if self._open > self._limit:
                raise UnavailableError("too-many-streams", f"the node serves {self._limit} streams already")
            vm = self._find(request.instance_id)
            if vm is None:
                raise NotFoundError("vm-not-found", f"instance {request.instance_id} has no VM on this node")
            match request.kind:
                case StreamKind.EXEC:
                    await self._exec(vm, request, stream)
                case StreamKind.LOGS:
                    await self._logs(vm, request, stream)
        except ShellWeGoError as error:
            await stream.send(pack(_error(error)))

    async def _exec(self, vm: VmView, request: StreamRequest, stream: DuplexStream) -> None:
        channel = await self._engine.exec(vm.vm_id, request)
        feeding = asyncio.create_task(_feed(stream, channel))
        try:
            async with aclosing(_output(channel)) as records:
                async for record in records:
                    await stream.send(pack(record))
        finally:
            await cancel_all([feeding])
            await channel.aclose()

    async def _logs(self, vm: VmView, request: StreamRequest, stream: DuplexStream) -> None:
        tail = max(0, min(request.tail, MAX_TAIL))
        current: VmView | None = vm
        while current is not None:
            lines = self._engine.logs(current.vm_id, follow=request.follow, tail=tail, since=request.since)
            async for line in lines:
                await stream.send(pack(_line(line)))
            current = await self._successor(current) if request.follow else None
            tail = MAX_TAIL


async def _feed(stream: DuplexStream, channel: ExecChannel) -> None:
    """Carry input to the guest until the client's end of it, or the guest's."""
    reader = RecordReader()
    try:
        while data := await stream.receive():
            for record in reader.feed(data):
                await _pass_on(record, channel)
        await channel.send_eof()
    except ShellWeGoError:
        return  # one side is gone, and with it the need for input; the output tells the rest
    except (RecordError, struct.error) as error:
        _log.warning("agent.exec_input_refused", reason=str(error))
        await channel.send_eof()


async def _pass_on(record: Record, channel: ExecChannel) -> None:
    match record.kind:
        case RecordKind.STDIN:
            await channel.send(record.payload)
        case RecordKind.STDIN_EOF:
            await channel.send_eof()
        case RecordKind.RESIZE:
            await channel.resize(*_SIZE.unpack(record.payload))
        case RecordKind.SIGNAL if len(record.payload) == 1:
            await channel.signal(record.payload[0])
        case _:
            raise RecordError(f"{record.kind.name} is not for the node")


async def _output(channel: ExecChannel) -> AsyncGenerator[Record]:
    """What the command writes, and its exit code as the last record.

    Raises:
        UnavailableError: the guest went away before the end.
    """
    async for item in channel.output():
        if isinstance(item, ExecDone):
            yield Record(RecordKind.EXIT, _EXIT.pack(item.code))
            return
        kind = _OUTPUT.get(item.stream, RecordKind.STDOUT)
        for start in range(0, len(item.data), MAX_PAYLOAD):
            yield Record(kind, item.data[start : start + MAX_PAYLOAD])
    raise UnavailableError("exec-lost", "the VM ended before the command did")


def _line(line: LogRecord) -> Record:
    return Record(RecordKind.LOG, encode(replace(line, text=line.text[:_MAX_TEXT])))


def _error(error: ShellWeGoError) -> Record:
    return Record(RecordKind.ERROR, f"{error.code}\0{error.message}".encode()[:4096])
