"""The guest's side of the channel, for a VM without a kernel: what `native/init` says of a Linux guest, said of a module.

Theory. What is told follows from the state (configured, ready, output up to here, ended), never from a queue; so a host
that comes back is told again from the beginning, and a host that is away costs nothing. One connection at a time: the
newest, for a host side that reconnects has given up the one before. Frames, numbers and the window are those of
docs/design/guest-channel.md.

There are no commands in a WebAssembly module, so EXEC_START is refused with `unsupported`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from struct import Struct
from typing import Protocol

from plasmavmc.deadlines import within
from plasmavmc.errors import GuestError
from plasmavmc.guest.framing import MAGIC, NONCE_BYTES, Frame, FrameDecoder, FrameType, encode, fields, put_field
from plasmavmc.guest.messages import MAX_CONFIG, MAX_TEXT, PROTOCOL_VERSION, Tag, encode_u32
from plasmavmc.guest.session import OUTPUT_WINDOW
from plasmavmc.hypervisor.wasm.output import OutputRing
from plasmavmc.types import FileSpec, LogStream

_READ = 64 * 1024
_OUTPUT_BYTES = 16 * 1024
_END_ATTACHED_S = 1.0
_END_ALONE_S = 2.0
_HELLO = Struct("<HBxQ")
_OUTPUT = Struct("<QB")
_EXITED = Struct("<IB")
_FILE = Struct("<IH")
_STOP = Struct("<II")
_U64 = Struct("<Q")
_U32 = Struct("<I")
_STREAMS = {LogStream.STDOUT: 1, LogStream.STDERR: 2}


@dataclass(slots=True)
class Told:
    """What the configuration says, as far as it means something to a module. User, host name and addresses do not."""

    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    files: list[FileSpec] = field(default_factory=list)


def decode_told(payload: bytes) -> Told:
    """Raises `GuestError`: `bad-frame`."""
    told = Told()
    for tag, value in fields(payload):
        if tag == Tag.ARG:
            told.argv.append(_text(value))
        elif tag == Tag.ENV:
            name, _, setting = _text(value).partition("=")
            told.env[name] = setting
        elif tag == Tag.FILE and len(value) >= _FILE.size:
            mode, length = _FILE.unpack_from(value)
            content = value[_FILE.size :]
            told.files.append(FileSpec(_text(content[:length]), content[length:], mode))
    return told


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


class Workload(Protocol):
    """What the conversation is about."""

    def configure(self, told: Told) -> None:
        """Begin. What becomes of it is told by `Guest.ready`, `failed` and `exited`."""

    def stop(self, grace_s: float) -> None:
        """End, within the grace."""


class _Hunter:
    """Passes over everything until a host's sync; then frames. Unsound frames send it hunting again."""

    def __init__(self) -> None:
        self._pending = b""
        self._frames: FrameDecoder | None = None
        self.nonce = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        if self._frames is None:
            data = self._hunt(data)
        if self._frames is not None:
            try:
                yield from self._frames.feed(data)
            except GuestError:
                self._frames, self._pending = None, b""

    def _hunt(self, data: bytes) -> bytes:
        self._pending += data
        found = self._pending.find(MAGIC)
        if found < 0:
            self._pending = self._pending[-len(MAGIC) :]
            return b""
        end = found + len(MAGIC) + NONCE_BYTES
        if len(self._pending) < end:
            self._pending = self._pending[found:]
            return b""
        self.nonce = self._pending[found + len(MAGIC) : end]
        rest, self._pending = self._pending[found:], b""
        self._frames = FrameDecoder(self.nonce)
        return rest


@dataclass(slots=True)
class _Host:
    """A host side that is attached, and what it was told."""

    writer: asyncio.StreamWriter
    credit: int = OUTPUT_WINDOW
    synced: bool = False
    ready: bool = False
    next_byte: int = 0
    ended: bool = False
    answers: list[bytes] = field(default_factory=list)


class Guest:
    """See the module's head. Lives in the worker's event loop; only `write` may be called from another thread."""

    def __init__(self, workload: Callable[[Guest], Workload]) -> None:
        self._workload = workload(self)
        self._loop = asyncio.get_running_loop()
        self._ring = OutputRing()
        self._host: _Host | None = None
        self._news = asyncio.Event()
        self._configuration = bytearray()
        self._configured = False
        self._ready = False
        self._acknowledged = 0
        self._end: bytes | None = None
        self._over = asyncio.Event()
        self._seen = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # What the workload tells

    def write(self, stream: LogStream, data: bytes) -> None:
        """What it writes. From any thread."""
        self._ring.write(stream, data)
        if not self._news.is_set():
            self._loop.call_soon_threadsafe(self._news.set)

    def ready(self) -> None:
        """It runs."""
        self._ready = True
        self._news.set()

    def failed(self, code: str, message: str) -> None:
        """It could not be started."""
        text = message.encode(errors="replace")[:MAX_TEXT]
        self._finish(encode(FrameType.FAILED, put_field(Tag.CODE, code.encode()) + put_field(Tag.MESSAGE, text)))

    def exited(self, code: int, *, oom: bool = False) -> None:
        """It ended. The first end counts."""
        self._finish(encode(FrameType.EXITED, _EXITED.pack(code, oom)))

    def _finish(self, frame: bytes) -> None:
        if self._end is None:
            self._end = frame
            self._over.set()
            self._news.set()

    # Life

    async def serve(self, listener: socket.socket) -> None:
        """Speak with whoever connects; returns when the end was told, or nobody wanted to hear it."""
        server = await asyncio.start_unix_server(self._attach, sock=listener)
        speaking = asyncio.create_task(self._speak())
        try:
            await self._over.wait()
            attached = self._host is not None
            with suppress(TimeoutError):
                async with within(_END_ATTACHED_S if attached else _END_ALONE_S):
                    await self._seen.wait()
        finally:
            speaking.cancel()
            server.close()

    async def _attach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._host is not None:
            self._host.writer.close()
        host = self._host = _Host(writer)
        hunter = _Hunter()
        try:
            while data := await reader.read(_READ):
                for frame in hunter.feed(data):
                    self._hear(host, frame)
                if hunter.nonce and not host.synced:
                    self._greet(host, hunter.nonce)
        except OSError:
            pass  # it is gone, and may come back
        finally:
            if self._host is host:
                self._host = None
            writer.close()

    def _greet(self, host: _Host, nonce: bytes) -> None:
        start = max(self._ring.start, self._acknowledged)
        host.synced, host.next_byte = True, start
        hello = _HELLO.pack(PROTOCOL_VERSION, self._configured, start)
        host.answers += [MAGIC + nonce, encode(FrameType.HELLO, hello)]
        self._news.set()

    # Hearing

    def _hear(self, host: _Host, frame: Frame) -> None:
        payload = frame.payload
        match frame.type:
            case FrameType.EXEC_START:
                self._refuse(host, frame.stream)
            case FrameType.CREDIT if frame.stream == 0 and len(payload) >= _U32.size:
                host.credit += _U32.unpack_from(payload)[0]
                self._news.set()
            case FrameType.ACK if len(payload) >= _U64.size:
                self._acknowledged = min(max(self._acknowledged, _U64.unpack_from(payload)[0]), self._ring.end)
                self._ring.acknowledge(self._acknowledged)
            case FrameType.CONFIG_PART if not self._configured:
                if len(self._configuration) + len(payload) <= MAX_CONFIG:
                    self._configuration += payload
            case FrameType.CONFIG_END if not self._configured:
                self._configure()
            case FrameType.STOP if len(payload) >= _STOP.size:
                self._workload.stop(_STOP.unpack_from(payload)[1] / 1000)
            case FrameType.SEEN_END if self._end is not None:
                self._seen.set()
            case _:
                pass  # a newer host's word, or one about commands, of which there are none

    def _configure(self) -> None:
        self._configured = True
        try:
            self._workload.configure(decode_told(bytes(self._configuration)))
        except GuestError as error:
            self.failed("bad-config", error.brief)
        self._configuration.clear()

    def _refuse(self, host: _Host, stream: int) -> None:
        message = b"a WebAssembly module has no commands that could be run in it"
        payload = put_field(Tag.CODE, b"unsupported") + put_field(Tag.MESSAGE, message)
        host.answers.append(encode(FrameType.EXEC_REFUSED, payload, stream=stream))
        self._news.set()

    # Speaking

    async def _speak(self) -> None:
        while True:
            self._news.clear()
            host = self._host
            if host is not None and host.synced:
                with suppress(OSError):
                    for data in self._due(host):
                        host.writer.write(data)
                        await host.writer.drain()
            await self._news.wait()

    def _due(self, host: _Host) -> Iterator[bytes]:
        """What this host was not told yet, in order, as far as its window lets."""
        while host.answers:
            yield host.answers.pop(0)
        if self._ready and not host.ready:
            host.ready = True
            yield encode(FrameType.READY, encode_u32(1))
        while (found := self._ring.read(host.next_byte, _OUTPUT_BYTES)) is not None:
            stream, offset, data = found
            frame = encode(FrameType.OUTPUT, _OUTPUT.pack(offset, _STREAMS[stream]) + data)
            if len(frame) > host.credit:
                return
            host.credit -= len(frame)
            host.next_byte = offset + len(data)
            yield frame
        if self._end is not None and not host.ended:
            host.ended = True
            yield self._end
