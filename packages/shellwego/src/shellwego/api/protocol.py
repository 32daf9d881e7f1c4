"""HTTP connections with bounds where uvicorn has none: on the size of a request's head, and on the time that head and body
may take. How many come from one address is bounded where they are accepted (`server`).

Without them a stranger could fill the memory with one endless header, or take up all connections by saying nothing, or a
byte now and then. A body that is refused before it came (401) is as good for that as one that is waited for.

Trap: what comes in a body that is sent in chunks and is none of it, extensions of a chunk and trailers, counts as nothing
above, and httptools keeps a trailer in memory until its end, and uvicorn all of them among the headers. Nothing here needs
trailers, so they are dropped (RFC 9110, section 6.5.1), and both are bounded as a head is.

Trap: a WebSocket's handshake is parsed anew by `websockets`, which has narrower bounds. Beyond them it neither answers nor
closes, and the connection would stay for ever; so they are looked at here.

Trap: what a WebSocket's client sends without a message coming of it stops nowhere above, while a message stops the reading
until somebody has taken it. A flood of pings and pongs would have the event loop for itself; what answers pings would be
kept for one that takes nothing; and each piece of a message is kept, also one that is empty and so counts nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame

MAX_HEAD = 64 * 1024
HEAD_S = 15.0
BODY_S = 15.0
BODY_BYTES = 64 * 1024
"""So much must have come of an unfinished body whenever so much time has gone by; unless it was we who took nothing."""
MAX_SOCKET_LINE = 8000
MAX_SOCKET_HEADERS = 100
MAX_PIECES = 1024
"""Of one message of a WebSocket."""
MAX_BEATS = 100
"""Pings and pongs of a WebSocket in a second. Honest clients send a few in a minute."""

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SOCKET_PROBLEM = (
    b'{"type":"urn:shellwego:problem:head-too-large","title":"Request Header Fields Too Large","status":431,'
    b'"instance":"","trace_id":"","code":"head-too-large",'
    b'"detail":"the path and query of a stream, a command included, have at most %d bytes in all",'
    b'"resolution":"Send what is long through stdin, or put it into a file of the image."}' % MAX_SOCKET_LINE
)
_SOCKET_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/problem+json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_SOCKET_PROBLEM), _SOCKET_PROBLEM)
)


class Shared(ServerState):
    """What all connections of a server know."""

    leaving = False
    """The server ends soon: each connection ends with its next answer, so that its client comes again to another one."""


class BoundedHttp(HttpToolsProtocol):
    """Counts bytes and time until a request's head is complete, and sees that its body comes on; how large that may be is
    the application's to say."""

    leave: Callable[[], None] | None = None
    """Takes the connection off the count of its address, on which it is since it was accepted."""
    made = False
    """It is a connection, its handshake done; so it leaves by itself."""
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _body_bytes = 0
    _beside_bytes = 0
    """Came in a row within the body without being of it."""
    _in_head = True
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it, too
        super().connection_made(transport)
        self.made = True
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)
        if self.leave is not None:
            self.leave()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD and b"\r\n\r\n" not in data:
                self._refuse_head()
                return
        before = self._body_bytes if self._in_body else None
        super().data_received(data)
        if self._in_body and self._body_bytes == before:
            self._beside_bytes += len(data)
            if self._beside_bytes > MAX_HEAD:
                self._refuse_head()
        else:
            self._beside_bytes = 0

    def _refuse_head(self) -> None:
        self.transport.write(_TOO_LARGE)
        self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_message_begin(self) -> None:
        self._in_body = False
        if not self._in_head:
            self._in_head, self._head_bytes = True, 0
            self._start_deadline()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._await_body()
        super().on_headers_complete()
        if isinstance(self.server_state, Shared) and self.server_state.leaving and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_deadline()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._stop_deadline()
        headers = list(self.scope["headers"])
        longest = max(len(self.url), *(len(name) + len(value) for name, value in headers))
        if longest > MAX_SOCKET_LINE or len(headers) > MAX_SOCKET_HEADERS:
            self.transport.write(_SOCKET_TOO_LARGE)
            self.transport.close()
            return
        super().handle_websocket_upgrade()
        successor = self.transport.get_protocol()
        if isinstance(successor, BoundedSocket):
            successor.leave, self.leave = self.leave, None

    def _start_deadline(self) -> None:
        self._stop_deadline()
        self._deadline = self.loop.call_later(HEAD_S, self.transport.close)

    def _await_body(self) -> None:
        self._stop_deadline()
        self._body_bytes = 0
        self._deadline = self.loop.call_later(BODY_S, self._look_at_body)

    def _look_at_body(self) -> None:
        answered = self.cycle is not None and self.cycle.response_complete
        if answered or (self._body_bytes < BODY_BYTES and not self.flow.read_paused):
            self.transport.close()
        else:
            self._await_body()

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class BoundedSocket(WebSocketsSansIOProtocol):
    """A WebSocket that ends where its client says nothing without end."""

    leave: Callable[[], None] | None = None
    """See `BoundedHttp`."""
    _beats = 0
    _beats_since = 0.0

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.leave is not None:
            self.leave()

    def handle_ping(self) -> None:
        if self._is_beat_in_time():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if self._is_beat_in_time():
            super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_PIECES:
            super().handle_cont(event)
        else:
            self.transport.abort()

    def _is_beat_in_time(self) -> bool:
        now = self.loop.time()
        if now - self._beats_since >= 1.0:
            self._beats, self._beats_since = 0, now
        self._beats += 1
        if self._beats > MAX_BEATS:
            self.transport.abort()
        return self._beats <= MAX_BEATS
