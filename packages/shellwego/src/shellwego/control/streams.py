"""Streams to instances: on which node, and commands run over them to their end.

Whoever opens a stream was admitted and audited before (`authorization`); here the node is found and the port asked. The
bytes are records (`wire.streams`) written by a guest's host: they are parsed with bounds, never believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from shellwego.core.errors import ConflictError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.instances import Instance
from shellwego.core.vms import NetworkUsage, VmUsage
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest, Streams
from shellwego.wire.codec import decode
from shellwego.wire.streams import Record, RecordError, RecordKind, RecordReader, pack

USAGE_S = 2.0
_MOST = float(1 << 60)
_MOST_REASONS = 64
_REASON = re.compile(r"[a-z0-9-]{1,40}")
_FORBIDDEN = ("vm-", "cannot-", "invalid-", "exec-no-such-")
"""What the codes of a node's errors begin with where another try would end the same way."""


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
        ConflictError: its state, or the guest, forbids what was asked.
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


async def poured(streams: Streams, node_id: str, request: StreamRequest) -> AsyncGenerator[bytes]:
    """What a node sends for another one, to its end; an end that is not told is none. Raises as `records`."""
    stream = await streams.open(node_id, request)
    try:
        async with contextlib.aclosing(records(stream)) as incoming:
            async for record in incoming:
                if record.kind is RecordKind.EXIT:
                    return
                if record.kind is RecordKind.STDOUT:
                    yield record.payload
    finally:
        await stream.aclose()
    raise UnavailableError("stream-broken", "it broke off on its way")


def stream_error(record: Record) -> ShellWeGoError:
    """What an error record says: that there is no such VM on the node (any more, or yet), that its state or the guest
    forbids what was asked, or that something failed."""
    code, _, message = record.payload.decode(errors="replace").partition("\0")
    kind: type[ShellWeGoError] = ConflictError if code.startswith(_FORBIDDEN) else UnavailableError
    kind = NotFoundError if code.endswith("-not-found") else kind
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


async def usage_of(streams: Streams, instance: Instance) -> VmUsage | None:
    """What an instance's VM takes of its host now; None where it has none, or its node does not tell in time. It is shown
    beside what is known anyway, so its absence is no error."""
    if not instance.live or not instance.observed.vm_id:
        return None
    with contextlib.suppress(ShellWeGoError, ValueError, TimeoutError):
        async with asyncio.timeout(USAGE_S):
            stream = await open_stream(streams, instance, StreamRequest(kind=StreamKind.USAGE, instance_id=""))
            try:
                async with contextlib.aclosing(records(stream)) as incoming:
                    return _checked(decode(VmUsage, (await anext(incoming)).payload))
            except StopAsyncIteration:
                return None
            finally:
                await stream.aclose()
    return None


def _checked(used: VmUsage) -> VmUsage:
    """Raises `ValueError`: no host can have measured that."""
    numbers = (used.memory_bytes, used.cpu_seconds, used.disk_bytes, *used.pressure.values(), *_counts(used.network))
    if not all(0 <= number < _MOST for number in numbers) or not used.pressure.keys() <= {"cpu", "memory", "io"}:
        raise ValueError("a usage that makes no sense")
    return used


def _counts(used: NetworkUsage | None) -> tuple[int, ...]:
    """Raises `ValueError`: reasons that are no words."""
    if used is None:
        return ()
    if len(used.dropped) > _MOST_REASONS or not all(map(_REASON.fullmatch, used.dropped)):
        raise ValueError("reasons that are no words")
    passed = (used.transmit_packets, used.transmit_bytes, used.receive_packets, used.receive_bytes)
    return (*passed, *used.dropped.values())


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
