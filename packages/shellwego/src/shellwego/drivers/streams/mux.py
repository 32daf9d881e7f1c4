"""Many streams on one connection (`wire.links`): the same code at both ends of a link.

Frames that carry a stream's bytes are sent by whoever sends them, and wait where the connection is congested. The small
ones that keep things going (credit, resets, beats) wait in a queue of their own: so nobody has to wait to take what came or
to let go, and a link that is congested is not mistaken for a dead one, since whatever arrives is a sign of life.

Silence is counted in beats of our own: a process that was stopped for a while heard nothing in that time, which says nothing
of the other side.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.ports.streams import StreamHandler, StreamRequest
from shellwego.wire import links
from shellwego.wire.codec import decode, encode
from shellwego.wire.links import INITIAL_CREDIT, MAX_PIECE, Frame, FrameError, FrameKind, FrameSocket

WINDOW = 256 * 1024
"""Bytes that may be under way in one direction of a stream that flows."""
SPARE = 32 * 1024 * 1024
"""Bytes of a link for windows larger than the first credit; streams beyond it go on with that credit."""
MAX_STREAMS = 1024
MAX_NOISE = 20_000
"""Frames in one beat that serve nothing: beats, crumbs of credit, what comes for streams that are gone."""
MOST_POSTED = 4 * 1024 * 1024
"""Bytes of frames that wait for a side which takes nothing: then nothing more is opened there. Opening, and ending what was
opened, is what users of streams may do as often as they like, and it waits for nobody."""
_FRAME = 64
"""Bytes that a frame is taken for beside its payload."""
_MOST_CREDIT = 1 << 30
_CRUMB = INITIAL_CREDIT // 4
_CUT = "the link to the node was cut"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Beat:
    """How often a side says that it is there, and after how many beats without a frame the other one is not."""

    every_s: float = links.BEAT_S
    silent: int = links.SILENT_BEATS


class Stream:
    """One end of one stream; see `ports.streams.DuplexStream`."""

    def __init__(self, link: Link, number: int) -> None:
        self.number = number
        self._link = link
        self._buffer = bytearray()
        self._window = self._allowed = INITIAL_CREDIT
        self._taken = 0
        self._credit = INITIAL_CREDIT
        self._ended_in = False
        self._ended_out = ""
        self._broken = ""
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    async def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            while not self._credit and not self._broken and not self._ended_out:
                self._writable.clear()
                await self._writable.wait()
            if self._broken or self._ended_out:
                raise UnavailableError("stream-closed", self._broken or self._ended_out)
            piece = rest[: min(self._credit, MAX_PIECE)]
            self._credit -= len(piece)
            await self._link.send(Frame(FrameKind.DATA, self.number, bytes(piece)))
            rest = rest[len(piece) :]

    async def send_eof(self) -> None:
        if not self._broken and not self._ended_out:
            self._ended_out = "this direction of the stream was ended"
            await self._link.send(Frame(FrameKind.EOF, self.number))

    async def receive(self) -> bytes:
        while not self._buffer and not self._broken and not self._ended_in:
            self._readable.clear()
            await self._readable.wait()
        if self._broken:
            raise UnavailableError("stream-closed", self._broken)
        data = bytes(self._buffer)
        self._buffer.clear()
        self._give_credit(len(data))
        return data

    async def aclose(self) -> None:
        self.reset("the other side closed the stream", "the stream was closed")

    def reset(self, told: str, here: str = "") -> None:
        """Break both directions, and tell the other side why, unless it knows."""
        if not self._broken:
            self.break_(here or told)
            self._link.drop(self, told)

    def break_(self, reason: str) -> None:
        """Nothing more passes, and what was under way is lost."""
        self._broken = self._broken or reason
        self._buffer.clear()
        self._wake()

    def take(self, frame: Frame) -> None:
        """What came for this stream.

        Raises:
            FrameError: it may not come.
        """
        match frame.kind:
            case FrameKind.DATA:
                self._take_data(frame.payload)
            case FrameKind.CREDIT:
                self._credit += links.credit_of(frame.payload)
                if self._credit > _MOST_CREDIT:
                    raise FrameError("more credit than anybody needs")
                self._writable.set()
            case FrameKind.EOF if not self._ended_in:
                self._ended_in = True
                self._readable.set()
            case FrameKind.END:
                self._ended_in = True
                self._ended_out = "the node has ended the stream"
                self._wake()
            case FrameKind.RESET:
                self.break_(frame.payload.decode(errors="replace")[: links.MAX_REASON] or "the stream broke")
            case _:
                raise FrameError(f"{frame.kind.name} on a stream")

    def free(self) -> int:
        """Give back what was borrowed of the link's spare bytes."""
        borrowed, self._window = self._window - INITIAL_CREDIT, INITIAL_CREDIT
        return borrowed

    def _take_data(self, data: bytes) -> None:
        self._allowed -= len(data)
        if self._allowed < 0 or self._ended_in or not data:
            raise FrameError("bytes beyond the credit, or beyond the end")
        if not self._broken:
            self._buffer += data
            self._readable.set()

    def _give_credit(self, taken: int) -> None:
        """Let more come, once enough was taken that it is worth a frame."""
        self._taken += taken
        if self._taken < self._window // 2 or self._ended_in:
            return
        more = self._link.borrow(WINDOW - self._window) if self._window < WINDOW else 0
        self._window += more
        count, self._taken = self._taken + more, 0
        self._allowed += count
        self._link.post(Frame(FrameKind.CREDIT, self.number, links.credit(count)))

    def _wake(self) -> None:
        self._readable.set()
        self._writable.set()


class Link:
    """One end of a link: the node's, which serves streams, if it has a handler; else the server's, which opens them."""

    def __init__(
        self,
        socket: FrameSocket,
        *,
        handler: StreamHandler | None = None,
        on_hint: Callable[[str], None] = lambda _: None,
        beat: Beat | None = None,
    ) -> None:
        self._socket = socket
        self._handler = handler
        self._on_hint = on_hint
        self._beat = beat or Beat()
        self._streams: dict[int, Stream] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._last = 0
        self._spare = SPARE
        self._posted: deque[Frame] = deque()
        self._has_posted = asyncio.Event()
        self._heard = False
        self._noise = 0
        self.over = False

    async def run(self, hints: AsyncIterator[str] | None = None) -> str:
        """Carry frames until the link ends; why it did. `hints` are told to the other side."""
        parts = [self._read(), self._write(), self._keep_beating(), self._watch()]
        tasks = [asyncio.create_task(part) for part in (*parts, *([self._tell(hints)] if hints is not None else []))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            self.over = True
            for stream in list(self._streams.values()):
                stream.break_(_CUT)
            await self._socket.close()
            await _end([*tasks, *self._serving.values()])

    def open(self, request: StreamRequest) -> Stream:
        """Open a stream; the node is told without waiting for it.

        Raises:
            UnavailableError: the link is over, or as many streams as it may have are open.
            InvalidError: the request is too long.
        """
        payload = encode(request)
        if len(payload) > links.MAX_FRAME:
            raise InvalidError("stream-request-too-long", f"a request has at most {links.MAX_FRAME} bytes")
        if self.over:
            raise UnavailableError("stream-closed", _CUT)
        if len(self._streams) >= MAX_STREAMS:
            raise UnavailableError("too-many-streams", f"{MAX_STREAMS} streams to this node are open already")
        if sum(_FRAME + len(frame.payload) for frame in self._posted) > MOST_POSTED:
            raise UnavailableError("node-congested", "the node takes nothing that is sent to it now")
        self._last += 1
        stream = self._streams[self._last] = Stream(self, self._last)
        self.post(Frame(FrameKind.OPEN, stream.number, payload))
        return stream

    async def send(self, frame: Frame) -> None:
        """Send a frame after all that was posted before; waits while the connection is congested.

        Raises:
            UnavailableError: the link is over.
        """
        if self.over:
            raise UnavailableError("stream-closed", _CUT)
        try:
            while self._posted:
                await self._socket.send(links.pack(self._posted.popleft()))
            await self._socket.send(links.pack(frame))
        except ConnectionError:
            raise UnavailableError("stream-closed", _CUT) from None

    def post(self, frame: Frame) -> None:
        """Have a frame sent, without waiting for it."""
        if self.over:
            return
        self._posted.append(frame)
        self._has_posted.set()

    def drop(self, stream: Stream, told: str) -> None:
        """Forget a stream, and tell the other side unless it has forgotten it first."""
        if self._forget(stream.number):
            self.post(Frame(FrameKind.RESET, stream.number, told[: links.MAX_REASON].encode()))

    def borrow(self, count: int) -> int:
        """So many of the link's spare bytes; none where there are not that many."""
        if count > self._spare:
            return 0
        self._spare -= count
        return count

    async def close(self) -> None:
        """End the link."""
        await self._socket.close()

    def _forget(self, number: int) -> bool:
        stream = self._streams.pop(number, None)
        if stream is None:
            return False
        self._spare += stream.free()
        return True

    async def _read(self) -> str:
        try:
            while True:
                message = await self._socket.receive()
                self._heard = True
                self.take(links.unpack(message))
        except FrameError as error:
            _log.warning("link.refused", reason=str(error))
            return f"the other side broke the rules: {error}"
        except ConnectionError as error:
            return str(error)

    def take(self, frame: Frame) -> None:
        """What came on the link.

        Raises:
            FrameError: it may not come.
        """
        match frame.kind:
            case FrameKind.BEAT:
                self._count_noise()
            case FrameKind.HINT if self._handler is not None:
                self._on_hint(frame.payload.decode(errors="replace"))
            case FrameKind.OPEN if self._handler is not None:
                self._accept(frame, self._handler)
            case FrameKind.OPEN | FrameKind.HINT:
                raise FrameError(f"{frame.kind.name} from a node")
            case FrameKind.END if self._handler is not None:
                raise FrameError("END from a server")
            case _:
                self._pass_on(frame)

    def _pass_on(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            if not 0 < frame.stream <= self._last:
                raise FrameError(f"stream {frame.stream} was never opened")
            self._count_noise()  # it was on its way when this side let go
            return
        if frame.kind is FrameKind.CREDIT and links.credit_of(frame.payload) < _CRUMB:
            self._count_noise()
        stream.take(frame)
        if frame.kind in (FrameKind.END, FrameKind.RESET):
            self._forget(frame.stream)
            if (task := self._serving.get(frame.stream)) is not None:
                task.cancel()

    def _count_noise(self) -> None:
        self._noise += 1
        if self._noise > MAX_NOISE:
            raise FrameError("a flood of frames that serve nothing")

    def _accept(self, frame: Frame, handler: StreamHandler) -> None:
        if frame.stream <= self._last:
            raise FrameError("a stream whose number was used")
        self._last = frame.stream
        try:
            request = decode(StreamRequest, frame.payload)
        except ValueError as error:  # a kind that a newer server knows
            self._refuse(frame.stream, f"the node does not understand what was asked: {error}")
            return
        if len(self._streams) >= MAX_STREAMS:
            self._refuse(frame.stream, f"the node serves {MAX_STREAMS} streams already")
            return
        stream = self._streams[frame.stream] = Stream(self, frame.stream)
        task = self._serving[frame.stream] = asyncio.create_task(self._serve(handler, request, stream))
        task.add_done_callback(lambda _: self._serving.pop(stream.number, None))

    def _refuse(self, number: int, reason: str) -> None:
        self.post(Frame(FrameKind.RESET, number, reason[: links.MAX_REASON].encode()))

    async def _serve(self, handler: StreamHandler, request: StreamRequest, stream: Stream) -> None:
        try:
            await handler(request, stream)
        except UnavailableError:
            stream.reset("the stream ended early")
        except Exception:  # noqa: BLE001 - a defect of the handler ends its own stream only
            _log.exception("streams.handler_failed", kind=request.kind)
            stream.reset("the node failed to serve the stream")
        else:
            if self._forget(stream.number):
                self.post(Frame(FrameKind.END, stream.number))

    async def _write(self) -> str:
        try:
            while True:
                await self._has_posted.wait()
                self._has_posted.clear()
                while self._posted:
                    await self._socket.send(links.pack(self._posted.popleft()))
        except ConnectionError as error:
            return str(error)

    async def _keep_beating(self) -> str:
        while True:
            await asyncio.sleep(self._beat.every_s)
            if not self._posted:
                self.post(Frame(FrameKind.BEAT))

    async def _watch(self) -> str:
        silent = 0
        while silent < self._beat.silent:
            await asyncio.sleep(self._beat.every_s)
            silent = 0 if self._heard else silent + 1
            self._heard, self._noise = False, 0
        return "the other side is silent"

    async def _tell(self, hints: AsyncIterator[str]) -> str:
        try:
            async for subject in hints:
                await self.send(Frame(FrameKind.HINT, 0, subject.encode()))
        except UnavailableError as error:
            return error.message
        return "no more hints"


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
