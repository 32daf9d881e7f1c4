"""Streams in one process: two pipes of bounded size, back to back, and a task that serves them.

A pipe holds at most `WINDOW` bytes. That is the credit: a writer beyond it waits for its own reader and for nobody else.

How a stream ends. When the handler returns, what it wrote may still be read to its end; when it raises, or the link is cut,
the reader is told that something is missing (`UnavailableError`). When the client cancels, the handler's task is cancelled
with it: it may be waiting for a log line that never comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from shellwego.core.errors import UnavailableError
from shellwego.ports.streams import StreamHandler, StreamRequest
from shellwego.wire.codec import decode, encode

_log = structlog.get_logger(__name__)

WINDOW = 256 * 1024
"""Bytes that may be under way in one direction."""


class _Pipe:
    """One direction."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False
        self._broken = ""
        self._moved = asyncio.Condition()

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            async with self._moved:
                await self._moved.wait_for(lambda: len(self._buffer) < WINDOW or self._broken or self._ended)
                self._check(writing=True)
                room = WINDOW - len(self._buffer)
                self._buffer += rest[:room]
                rest = rest[room:]
                self._moved.notify_all()

    async def read(self) -> bytes:
        async with self._moved:
            await self._moved.wait_for(lambda: self._buffer or self._broken or self._ended)
            self._check(writing=False)
            data = bytes(self._buffer)
            self._buffer.clear()
            self._moved.notify_all()
            return data

    async def end(self) -> None:
        """No more will be written."""
        async with self._moved:
            self._ended = True
            self._moved.notify_all()

    async def break_(self, reason: str) -> None:
        """Nothing more passes, and what was under way is lost."""
        async with self._moved:
            self._broken = self._broken or reason
            self._buffer.clear()
            self._moved.notify_all()

    def _check(self, *, writing: bool) -> None:
        if self._broken:
            raise UnavailableError("stream-closed", self._broken)
        if writing and self._ended:
            raise UnavailableError("stream-closed", "this direction of the stream was ended")


class _End:
    """One end of a stream; see `ports.streams.DuplexStream`."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, on_close: Callable[[], None]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_close = on_close

    async def send(self, data: bytes) -> None:
        await self._outgoing.write(data)

    async def send_eof(self) -> None:
        await self._outgoing.end()

    async def receive(self) -> bytes:
        return await self._incoming.read()

    async def aclose(self) -> None:
        await self._incoming.break_("the stream was closed")
        await self._outgoing.break_("the other side closed the stream")
        self._on_close()


class _Served:
    """A stream with the task that serves it."""

    def __init__(self, handler: StreamHandler, request: StreamRequest) -> None:
        up, down = _Pipe(), _Pipe()
        self._pipes = (up, down)
        self._down = down
        self._up = up
        self.client = _End(down, up, self._cancel)
        self._server = _End(up, down, lambda: None)
        self.task = asyncio.create_task(self._serve(handler, request))

    async def cut(self) -> None:
        """The link between both ends is gone."""
        await self._break("the link to the node was cut")
        self._cancel()

    async def _serve(self, handler: StreamHandler, request: StreamRequest) -> None:
        try:
            await handler(request, self._server)
        except UnavailableError:
            await self._break("the stream ended early")
        except Exception:  # noqa: BLE001 - a defect of the handler ends its own stream only
            _log.exception("streams.handler_failed", kind=request.kind)
            await self._break("the node failed to serve the stream")
        else:
            await self._down.end()
            await self._up.break_("the node has ended the stream")

    async def _break(self, reason: str) -> None:
        for pipe in self._pipes:
            await pipe.break_(reason)

    def _cancel(self) -> None:
        self.task.cancel()


class MemoryStreams:
    """See `ports.streams.Streams` and `ports.streams.StreamListener`: both ends of the wire."""

    def __init__(self) -> None:
        self._handlers: dict[str, StreamHandler] = {}
        self._served: dict[str, set[_Served]] = {}

    async def serve(self, node_id: str, handler: StreamHandler) -> None:
        self._handlers[node_id] = handler
        try:
            await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            del self._handlers[node_id]
            await self.cut(node_id)

    async def open(self, node_id: str, request: StreamRequest) -> _End:
        handler = self._handlers.get(node_id)
        if handler is None:
            raise UnavailableError("node-unreachable", f"node {node_id} cannot be reached for streams")
        served = _Served(handler, decode(StreamRequest, encode(request)))
        of_node = self._served.setdefault(node_id, set())
        of_node.add(served)
        served.task.add_done_callback(lambda _: of_node.discard(served))
        return served.client

    async def cut(self, node_id: str) -> None:
        """Break every stream of a node, as a lost connection does."""
        for served in list(self._served.get(node_id, ())):
            await served.cut()
            await asyncio.wait([served.task])
