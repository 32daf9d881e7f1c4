"""Two-way streams of a VM, on the server's side: a command, the workload itself, an archive that comes in or goes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import TypeAlias, TypeVar

from plasmavmc.deadlines import within
from plasmavmc.errors import ConflictError, GuestError, InvalidSpecError
from plasmavmc.guest.api import ExecExit, ExecOutput, ExecSession
from plasmavmc.rpc.conversions.streams import output_to_pb, signal_from_pb, size_from_pb
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.types import LogStream

START_DEADLINE_S = 30.0
"""From the opening of a stream to its first message."""
MAX_CHUNK = 1024 * 1024
_MAX_COMPLAINT = 2000
_SILENT_S = 300.0
"""An upload that brings nothing for so long is over."""

Item = TypeVar("Item")
Input: TypeAlias = "vm_pb2.ExecVmRequest | vm_pb2.AttachVmRequest"


async def first_message(messages: AsyncIterator[Item], deadline_s: float) -> Item:
    """The first message of a stream.

    Raises:
        InvalidSpecError: none came in time.
    """
    try:
        async with within(deadline_s):
            return await anext(messages)
    except (TimeoutError, StopAsyncIteration):
        raise InvalidSpecError("start", f"no first message came within {deadline_s:g} s") from None


async def joined(
    messages: AsyncIterator[Input], session: ExecSession, *, ends: bool
) -> AsyncGenerator[vm_pb2.ExecVmResponse, None]:
    """Carry input in and output out until the command's end, and let it go whatever happens. `ends`: the end of the stream
    is the end of the input, too."""
    pump = asyncio.create_task(_feed(messages, session, ends=ends), name="session input")
    try:
        yield vm_pb2.ExecVmResponse(started=vm_pb2.ExecStarted())
        async with aclosing(_until_end(session, pump)) as items:
            async for item in items:
                yield output_to_pb(item)
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        await session.aclose()


async def copied_in(messages: AsyncIterator[vm_pb2.CopyIntoVmRequest], session: ExecSession) -> None:
    """Carry an archive in until its end.

    Raises:
        GuestError: `copy-failed`, with the guest's words.
    """
    upload = asyncio.create_task(_upload(messages, session), name="copy in")
    try:
        await _told_end(session, upload)
    finally:
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)
        await session.aclose()


async def _upload(messages: AsyncIterator[vm_pb2.CopyIntoVmRequest], session: ExecSession) -> None:
    with suppress(GuestError):
        while True:
            try:
                async with within(_SILENT_S):
                    message = await anext(messages)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise ConflictError("copy-silent", f"nothing of the archive came for {_SILENT_S:g} s") from None
            if message.WhichOneof("message") != "chunk" or len(message.chunk) > MAX_CHUNK:
                raise InvalidSpecError("chunk", "chunks of the archive follow the start, each of at most 1 MiB")
            await session.send(message.chunk)
        await session.send_eof()


async def _told_end(session: ExecSession, upload: asyncio.Task[None]) -> None:
    complaint = bytearray()
    async with aclosing(_until_end(session, upload)) as items:
        async for item in items:
            if isinstance(item, ExecExit):
                _check_code(item, bytes(complaint))
            elif item.stream is LogStream.STDERR and len(complaint) < _MAX_COMPLAINT:
                complaint += item.data


async def copied_out(session: ExecSession) -> AsyncGenerator[vm_pb2.CopyFromVmResponse, None]:
    """An archive that the guest gives out, and what it says of it; raises as `copied_in`."""
    complaint = bytearray()
    try:
        async for item in session.output():
            if isinstance(item, ExecExit):
                _check_code(item, bytes(complaint))
                for line in _lines(bytes(complaint)):
                    yield vm_pb2.CopyFromVmResponse(warning=line)
            elif item.stream is LogStream.STDERR:
                complaint += item.data[: max(_MAX_COMPLAINT - len(complaint), 0)]
            else:
                yield vm_pb2.CopyFromVmResponse(chunk=item.data)
    finally:
        await session.aclose()


def _check_code(end: ExecExit, complaint: bytes) -> None:
    if end.code != 0:
        words = _lines(complaint)
        raise GuestError("copy-failed", words[-1] if words else f"the copy ended with {end.code}")


def _lines(complaint: bytes) -> list[str]:
    """What a guest said, without what a terminal would obey."""
    text = complaint.decode(errors="replace")
    printable = "".join(each if each.isprintable() or each == "\n" else "?" for each in text)
    return [line for line in printable.split("\n") if line]


async def _feed(messages: AsyncIterator[Input], session: ExecSession, *, ends: bool) -> None:
    """Carry input into a command. The next message is read when the last one found room, so a command that does not
    read holds its client back, and no memory.

    A command that is gone needs no input: its end is told by its output.
    """
    ended = False
    with suppress(GuestError):
        async for message in messages:
            if ended and message.WhichOneof("message") in ("stdin", "stdin_eof"):
                raise InvalidSpecError("stdin", "the end of the input was told before")
            ended = ended or message.WhichOneof("message") == "stdin_eof"
            await _pass_on(message, session)
        if ends and not ended:
            await session.send_eof()


async def _pass_on(message: Input, session: ExecSession) -> None:
    match message.WhichOneof("message"):
        case "stdin":
            await session.send(message.stdin)
        case "stdin_eof":
            await session.send_eof()
        case "resize":
            await session.resize(size_from_pb("resize", message.resize))
        case "signal":
            await session.signal(signal_from_pb(message.signal))
        case _:
            raise InvalidSpecError("message", "only input, sizes and signals follow the start")


async def _until_end(session: ExecSession, pump: asyncio.Task[None]) -> AsyncGenerator[ExecOutput | ExecExit, None]:
    """What a command writes, and last its end. Input that makes no sense ends it, by its error."""
    output = session.output()
    while True:
        item = asyncio.ensure_future(anext(output))
        try:
            await asyncio.wait({item, pump} if not pump.done() else {item}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
                await asyncio.wait({item})
        finally:
            item.cancel()
        try:
            told = item.result()
        except StopAsyncIteration:
            return
        yield told
        if isinstance(told, ExecExit):
            return
