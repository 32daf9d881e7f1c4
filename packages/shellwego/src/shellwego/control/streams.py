"""Streams to instances: who may, on which node, and several logs told as one.

Whoever opens a stream was admitted and audited before (`authorization`); here the node is found and the port asked. The
bytes are records (`wire.streams`) written by a guest's host: they are parsed with bounds, never believed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec

from shellwego.control.events import changes
from shellwego.control.unit import Control
from shellwego.core.errors import NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.instances import Instance
from shellwego.ports.engine import LogRecord
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest, Streams
from shellwego.wire import codec, subjects
from shellwego.wire.streams import Record, RecordError, RecordKind, RecordReader, pack

MAX_TAIL = 10_000
_QUEUE = 256
"""Lines read ahead of a slow reader; beyond it the streams are not read, and wait."""


Look = Callable[[], Awaitable[list[Instance]]]


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line, and who wrote it."""

    instance_id: str
    process: str
    record: LogRecord


@dataclass(frozen=True, slots=True)
class LogQuery:
    tail: int = 100
    since: float = 0.0
    instance_id: str = ""
    process: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What a command that was run to its end left behind."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


async def open_stream(streams: Streams, instance: Instance, request: StreamRequest) -> DuplexStream:
    """Open a stream to the instance; raises `UnavailableError` where its node cannot be reached."""
    return await streams.open(instance.node_id, replace(request, instance_id=instance.id))


async def records(stream: DuplexStream) -> AsyncGenerator[Record]:
    """The records of a stream until its end.

    Raises:
        UnavailableError: the other side went away, sent nonsense, or ended with an error record.
        NotFoundError: the node has no VM of this instance.
    """
    reader = RecordReader()
    while data := await stream.receive():
        try:
            for record in reader.feed(data):
                if record.kind is RecordKind.ERROR:
                    raise stream_error(record)
                yield record
        except RecordError as error:
            raise UnavailableError("stream-broken", f"the node sent what is not a stream: {error}") from None


def stream_error(record: Record) -> ShellWeGoError:
    """What an error record says: that there is no such VM on the node (any more, or yet), or that something failed."""
    code, _, message = record.payload.decode(errors="replace").partition("\0")
    kind = NotFoundError if code.endswith("-not-found") else UnavailableError
    return kind(code or "stream-failed", message or "the stream failed on the node")


def error_record(error: ShellWeGoError) -> bytes:
    """The record that ends a failed stream."""
    return pack(Record(RecordKind.ERROR, f"{error.code}\0{error.message}".encode()[:4096]))


async def run_command(
    streams: Streams, instance: Instance, request: StreamRequest, stdin: bytes, max_output: int
) -> CommandResult:
    """Run a command in the instance to its end; output beyond `max_output` bytes is read and dropped.

    Raises:
        UnavailableError: the node or the guest could not run it, or the stream broke before the exit code.
    """
    stream = await open_stream(streams, instance, request)
    try:
        sender = asyncio.ensure_future(_send_stdin(stream, stdin))
        try:
            return await _collect(stream, max_output)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
    finally:
        await stream.aclose()


async def _send_stdin(stream: DuplexStream, stdin: bytes) -> None:
    """Input goes beside the output: a command may write before it reads."""
    for start in range(0, len(stdin), 16 * 1024):
        await stream.send(pack(Record(RecordKind.STDIN, stdin[start : start + 16 * 1024])))
    await stream.send(pack(Record(RecordKind.STDIN_EOF)))


async def _collect(stream: DuplexStream, max_output: int) -> CommandResult:
    outputs = {RecordKind.STDOUT: bytearray(), RecordKind.STDERR: bytearray()}
    truncated = False
    async with contextlib.aclosing(records(stream)) as incoming:
        async for record in incoming:
            if record.kind is RecordKind.EXIT:
                code = int.from_bytes(record.payload[:4], "big", signed=True)
                stdout, stderr = (bytes(output) for output in outputs.values())
                return CommandResult(exit_code=code, stdout=stdout, stderr=stderr, truncated=truncated)
            output = outputs.get(record.kind)
            if output is not None:
                room = max_output - len(output)
                truncated = truncated or len(record.payload) > room
                output += record.payload[: max(room, 0)]
    raise UnavailableError("stream-broken", "the stream ended before the command did")


async def read_log(streams: Streams, instance: Instance, query: LogQuery, *, follow: bool) -> AsyncGenerator[LogLine]:
    """The lines of one instance, oldest first; raises as `records`."""
    request = StreamRequest(
        kind=StreamKind.LOGS, instance_id=instance.id, follow=follow, tail=query.tail, since=query.since
    )
    stream = await open_stream(streams, instance, request)
    try:
        async with contextlib.aclosing(records(stream)) as incoming:
            async for record in incoming:
                if record.kind is RecordKind.LOG:
                    yield LogLine(instance.id, instance.process, _parse(record))
    finally:
        await stream.aclose()


def _parse(record: Record) -> LogRecord:
    try:
        return codec.decode(LogRecord, record.payload)
    except (ValueError, msgspec.DecodeError):
        raise UnavailableError("stream-broken", "the node sent what is not a log line") from None


async def read_logs(streams: Streams, instances: list[Instance], query: LogQuery) -> list[LogLine]:
    """The last lines of several instances in the order of their time. One that has no VM (any more, or yet) has no lines;
    one that cannot be reached is left out, unless none can: then `UnavailableError` says why."""
    gathered = await asyncio.gather(
        *(_all_lines(streams, instance, query) for instance in instances), return_exceptions=True
    )
    lines: list[LogLine] = []
    failures: list[BaseException] = []
    for result in gathered:
        if isinstance(result, BaseException):
            failures.append(result)
        else:
            lines += result
    unexpected = [failure for failure in failures if not isinstance(failure, ShellWeGoError)]
    if unexpected or (failures and len(failures) == len(instances)):
        raise (unexpected or failures)[0]
    lines.sort(key=lambda line: line.record.time)
    return lines[-query.tail :] if query.tail else []


async def _all_lines(streams: Streams, instance: Instance, query: LogQuery) -> list[LogLine]:
    try:
        async with contextlib.aclosing(read_log(streams, instance, query, follow=False)) as lines:
            return [line async for line in lines]
    except NotFoundError:
        return []


class LogFollower:
    """The lines of all instances that `look` gives, those that appear later included, as they are written. Of one instance
    that is named in the query, until it has ended and all was read."""

    def __init__(self, control: Control, streams: Streams, query: LogQuery) -> None:
        self._control = control
        self._streams = streams
        self._query = query
        self._lines: asyncio.Queue[LogLine] = asyncio.Queue(_QUEUE)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._live: set[str] = set()

    async def lines(self, app_id: str, look: Look) -> AsyncGenerator[LogLine]:
        """Go on until the reader leaves, or `look` raises, or there can be no more."""
        watcher = asyncio.ensure_future(self._watch(app_id, look))
        try:
            while not (watcher.done() and self._lines.empty()):
                line = asyncio.ensure_future(self._lines.get())
                await asyncio.sleep(0)  # a line that is there already is taken, even after the watcher has ended
                await asyncio.wait({line, watcher}, return_when=asyncio.FIRST_COMPLETED)
                if line.done():
                    yield line.result()
                line.cancel()
            await watcher
        finally:
            tasks = [watcher, *self._readers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, app_id: str, look: Look) -> None:
        query = self._query
        async with contextlib.aclosing(changes(self._control, subjects.app(app_id))) as ticks:
            async for _ in ticks:
                found = await look()
                self._live = {instance.id for instance in found if instance.live}
                for instance in found:
                    if instance.id not in self._readers:
                        self._readers[instance.id] = asyncio.ensure_future(self._read(instance, query))
                query = replace(self._query, tail=MAX_TAIL)
                if self._over():
                    return

    def _over(self) -> bool:
        one = self._query.instance_id
        reader = self._readers.get(one)
        return bool(one) and one not in self._live and (reader is None or reader.done())

    async def _read(self, instance: Instance, query: LogQuery) -> None:
        """One instance until its end. A node that cannot be reached, or has no VM of it yet, is asked again; after a break
        the lines of the last moment may come twice."""
        while True:
            try:
                async with contextlib.aclosing(read_log(self._streams, instance, query, follow=True)) as lines:
                    async for line in lines:
                        await self._lines.put(line)
                        query = replace(query, since=line.record.time, tail=MAX_TAIL)
                return
            except ShellWeGoError as error:
                coming = isinstance(error, NotFoundError) and instance.id in self._live
                if not (error.temporary or coming):
                    return
                await self._control.clock.sleep(1.0)
