"""Serves streams to the VMs of this node: commands, the workload itself, files, and logs that go on from one attempt of an
instance to the next.

What comes in was written by a user and is cut into records with bounds; what goes out was written by a guest and is cut to
them. A stream that fails ends with an error record, so that the reader learns why; one that is cancelled (its client left)
takes the guest's process with it. No organization may have more streams of a node than it leaves free, so that none can shut
others out; what nodes give to one another is not counted with them.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace

import structlog

from shellwego.agent.waiting import cancel_all
from shellwego.core.convergence import vm_id
from shellwego.core.errors import NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.vms import VmView
from shellwego.ports.engine import Engine, ExecChannel, ExecDone, LogRecord
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest
from shellwego.wire.codec import encode
from shellwego.wire.streams import MAX_PAYLOAD, Record, RecordError, RecordKind, RecordReader, pack

MAX_STREAMS = 256
"""Of all organizations. What nodes keep for and give to one another, the control plane bounds."""
MAX_TAIL = 10_000
MAX_ATTEMPTS = 10
"""Of one instance, told in one request for its log."""
MAX_HOLES = 50
"""Attempts in a row that left no log, or none any more, and are passed over."""
_MAX_TEXT = 15_000
"""Characters of a log line, so that four bytes each fit a record."""
_SIZE = struct.Struct("!HH")
_EXIT = struct.Struct("!i")
_BETWEEN_NODES = (StreamKind.MEMORY, StreamKind.REPLICA)
_OUTPUT = {"stdout": RecordKind.STDOUT, "stderr": RecordKind.STDERR}

_log = structlog.get_logger(__name__)

SendVolume = Callable[[StreamRequest], AsyncGenerator[bytes]]
"""Gives a snapshot of a volume for another node."""
FindVm = Callable[[str], VmView | None]
Successor = Callable[[VmView], Awaitable[VmView | None]]


class StreamServer:
    """Serves one request at a call, at most `limit` at once. `find` gives the newest VM of an instance, `successor` waits
    for the next, `send` gives what other nodes keep of volumes."""

    def __init__(
        self, engine: Engine, find: FindVm, successor: Successor, send: SendVolume, limit: int = MAX_STREAMS
    ) -> None:
        self._engine = engine
        self._find = find
        self._successor = successor
        self._send_volume = send
        self._limit = limit
        self._open: Counter[str] = Counter()
        """By organization; those to what is gone from here as of one more."""

    async def serve(self, request: StreamRequest, stream: DuplexStream) -> None:
        """See `ports.streams.StreamHandler`."""
        vm = self._find(request.instance_id)
        try:
            if request.kind in _BETWEEN_NODES:
                await self._serve(vm, request, stream)
            else:
                with self._counted(vm.organization_id if vm else ""):
                    await self._serve(vm, request, stream)
        except ShellWeGoError as error:
            await stream.send(pack(_error(error)))
        await stream.send_eof()

    @contextmanager
    def _counted(self, organization_id: str) -> Iterator[None]:
        """One more of the organization.

        Raises:
            UnavailableError: it has as many as are free.
        """
        if self._open[organization_id] >= self._limit - self._open.total():
            raise UnavailableError(
                "too-many-streams",
                f"{self._open[organization_id]} commands and logs of the organization are open on this node already,"
                " and the rest is left to others",
            )
        self._open[organization_id] += 1
        try:
            yield
        finally:
            self._open[organization_id] -= 1
            self._open += Counter()  # forgets who has none

    async def _serve(self, vm: VmView | None, request: StreamRequest, stream: DuplexStream) -> None:
        match request.kind:
            case StreamKind.LOGS:
                await self._logs(vm, request, stream)
            case StreamKind.USAGE:
                await self._usage(vm, request, stream)
            case StreamKind.MEMORY:
                await self._memory(vm, request, stream)
            case StreamKind.REPLICA:
                await _pour(self._send_volume(request), stream)
            case StreamKind.EXEC | StreamKind.ATTACH | StreamKind.COPY_IN | StreamKind.COPY_OUT:
                await self._session(vm, request, stream)

    async def _session(self, vm: VmView | None, request: StreamRequest, stream: DuplexStream) -> None:
        if vm is None:
            raise _not_here(request.instance_id)
        begin = self._engine.exec if request.kind is StreamKind.EXEC else self._engine.join
        channel = await begin(vm.vm_id, request)
        feeding = asyncio.create_task(_feed(stream, channel))
        try:
            async with aclosing(_output(channel)) as records:
                async for record in records:
                    await stream.send(pack(record))
        finally:
            await cancel_all([feeding])
            await channel.aclose()

    async def _memory(self, vm: VmView | None, request: StreamRequest, stream: DuplexStream) -> None:
        if vm is None:
            raise _not_here(request.instance_id)
        await _pour(self._engine.export_memory(vm.vm_id), stream)

    async def _usage(self, vm: VmView | None, request: StreamRequest, stream: DuplexStream) -> None:
        if vm is None:
            raise _not_here(request.instance_id)
        await stream.send(pack(Record(RecordKind.USAGE, encode(await self._engine.usage(vm.vm_id)))))

    async def _logs(self, vm: VmView | None, request: StreamRequest, stream: DuplexStream) -> None:
        newest = vm.attempt if vm else await self._last_logged(request)
        plan = await self._history(request, newest)
        for log_id, tail in plan[:-1]:
            await self._send_log(log_id, stream, tail=tail, since=request.since, follow=False)
        log_id, tail = plan[-1]
        follow = request.follow and vm is not None
        await self._send_log(log_id, stream, tail=tail, since=request.since, follow=follow)
        while follow and vm is not None:
            vm = await self._successor(vm)
            if vm is not None:
                await self._send_log(vm.vm_id, stream, tail=MAX_TAIL, since=request.since, follow=True)

    async def _send_log(self, log_id: str, stream: DuplexStream, *, tail: int, since: float, follow: bool) -> None:
        async for line in self._engine.logs(log_id, follow=follow, tail=tail, since=since):
            await stream.send(pack(_line(line)))

    async def _history(self, request: StreamRequest, newest: int) -> list[tuple[str, int]]:
        """Which attempts to tell, oldest first, and how many last lines of each. Why an attempt ended stands in the log
        of that attempt, so earlier ones are told as well while the wanted number of lines is not full.

        Raises:
            NotFoundError: nothing is left of it here.
        """
        left = max(0, min(request.tail, MAX_TAIL))
        plan: list[tuple[str, int]] = []
        attempt, holes = newest, 0
        while attempt > 0 and holes < MAX_HOLES and len(plan) < MAX_ATTEMPTS and (left > 0 or not plan):
            log_id = vm_id(request.instance_id, attempt)
            count = await self._count(log_id, left, request.since)
            attempt, holes = attempt - 1, holes + 1
            if count is not None:
                plan.append((log_id, left))
                left, holes = left - count, 0
        if not plan:
            raise _not_here(request.instance_id)
        return plan[::-1]

    async def _last_logged(self, request: StreamRequest) -> int:
        """The last attempt of an instance that is gone, as far as it left a log: what is known elsewhere may be older."""
        attempt = newest = max(request.attempt, 0)
        while attempt - newest < MAX_HOLES:
            attempt += 1
            if await self._count(vm_id(request.instance_id, attempt), 0, 0.0) is not None:
                newest = attempt
        return newest

    async def _count(self, log_id: str, tail: int, since: float) -> int | None:
        """How many lines a log gives; None where there is no such log."""
        count = 0
        try:
            async for _ in self._engine.logs(log_id, follow=False, tail=tail, since=since):
                count += 1
        except NotFoundError:
            return None
        return count


def _not_here(instance_id: str) -> NotFoundError:
    return NotFoundError("vm-not-found", f"instance {instance_id} has no VM on this node")


async def _pour(source: AsyncGenerator[bytes], stream: DuplexStream) -> None:
    """Send what there is, and say that it was all."""
    async with aclosing(source) as chunks:
        async for chunk in chunks:
            for start in range(0, len(chunk), MAX_PAYLOAD):
                await stream.send(pack(Record(RecordKind.STDOUT, chunk[start : start + MAX_PAYLOAD])))
    await stream.send(pack(Record(RecordKind.EXIT, _EXIT.pack(0))))


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
