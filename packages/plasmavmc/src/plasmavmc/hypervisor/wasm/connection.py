"""One HTTP connection to a module that serves: requests are read and checked, answers are written. Syntax by `h11`.

Theory. A request reaches a module whole or not at all: its body is kept in a memory file until its end, so that a client
that sends slowly holds no run, and one that never ends is a bounded file. An answer goes out as it is made. Where one was
begun and cannot be ended as it said (a trap, another length), the connection is cut, which is how a client sees that it has
not got all (RFC 9112, 8).

After a request that was refused, or whose body nobody read, the connection is closed: what follows cannot be trusted to be
the next request.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import h11

from plasmavmc.deadlines import within
from plasmavmc.hypervisor.wasm.gateway import MAX_HEAD_BYTES, BadRequestError, Head, Request, check_request
from plasmavmc.types import MIB

MAX_BODY_BYTES: Final = 8 * MIB
MAX_HELD_BYTES: Final = 64 * MIB
"""Of all bodies that are being read or used."""
IDLE_S = 75.0
"""Longer than the edge keeps a connection that it does not use: who closes first must not be we."""
BODY_S = 60.0
_READ = 64 * 1024
_LINGER_S = 2.0
_LINGER_BYTES = MIB


class Bodies:
    """The memory that bodies of requests lie in, all together."""

    def __init__(self) -> None:
        self._left = MAX_HELD_BYTES

    def take(self, size: int) -> None:
        """Raises `BadRequestError`: 503, there is no room now."""
        if size > self._left:
            raise BadRequestError(503, "too many bodies of requests at once")
        self._left -= size

    def give_back(self, size: int) -> None:
        """The other half of `take`."""
        self._left += size


class Body:
    """The body of one request, in a memory file."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size = 0
        self.fd = -1
        """-1 while it is empty."""

    def add(self, data: bytes) -> None:
        """Raises `BadRequestError`: 413, 503."""
        if self.size + len(data) > MAX_BODY_BYTES:
            raise BadRequestError(413, f"a body may have {MAX_BODY_BYTES} bytes")
        self._bodies.take(len(data))
        self.size += len(data)
        if self.fd < 0:
            self.fd = os.memfd_create("body", os.MFD_CLOEXEC)
        while data:
            data = data[os.write(self.fd, data) :]

    def close(self) -> None:
        """Give its memory back. Idempotent."""
        self._bodies.give_back(self.size)
        if self.fd >= 0:
            os.close(self.fd)
        self.size, self.fd = 0, -1


class Exchange:
    """A request, and the way to answer it: `begin`, `send` any number of times, `end`; or `refuse`, or `cut`."""

    def __init__(self, connection: Connection, request: Request, body: Body) -> None:
        self._connection = connection
        self.request = request
        self.body = body
        self.begun = False

    async def begin(self, head: Head) -> None:
        """Raises `OSError`: the client is gone."""
        self.begun = True
        length = () if head.content_length is None else (("Content-Length", str(head.content_length)),)
        await self._connection.begin(head.status, head.reason, (*head.headers, *length))

    async def send(self, data: bytes) -> None:
        """Returns when the connection can take more. Raises `OSError`; `h11.LocalProtocolError`: beyond its length."""
        await self._connection.send(h11.Data(data=data))

    async def end(self) -> None:
        """Raises `OSError`; `h11.LocalProtocolError`: short of its length."""
        await self._connection.send(h11.EndOfMessage())

    async def refuse(self, status: int) -> None:
        """Answer in our own name. Raises `OSError`."""
        self.begun = True
        await self._connection.refuse(status)

    def cut(self) -> None:
        """End the connection where it is."""
        self._connection.cut()


class Connection:
    """See the module's head."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        bodies: Bodies,
        respond: Callable[[Exchange], Awaitable[None]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._bodies = bodies
        self._respond = respond
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._method = ""
        self._busy = False
        self._last = False

    async def live(self) -> None:
        """Serve it to its end."""
        try:
            with suppress(OSError, TimeoutError, h11.LocalProtocolError):
                while await self._exchange():
                    self._http.start_next_cycle()
        finally:
            self._writer.close()

    def finish(self) -> None:
        """Take no further request; one that is under way is answered."""
        self._last = True
        if not self._busy:
            self._writer.close()

    def cut(self) -> None:
        """End it at once."""
        self._writer.transport.abort()

    async def begin(self, status: int, reason: str, headers: Iterable[tuple[str, str]]) -> None:
        """The head of an answer goes out with what follows it."""
        raw = [(name.encode(), value.encode()) for name, value in headers]
        if all(name.lower() != b"date" for name, _ in raw):
            raw.append((b"Date", formatdate(usegmt=True).encode()))
        if self._last:
            raw.append((b"Connection", b"close"))
        text = reason or _phrase(status)
        await self.send(h11.Response(status_code=status, headers=raw, reason=text.encode()))

    async def send(self, event: h11.Response | h11.InformationalResponse | h11.Data | h11.EndOfMessage) -> None:
        """Write, and wait until the client has taken most of it."""
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()

    async def refuse(self, status: int) -> None:
        """Answer in our own name, and take no further request."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        self._last = True
        text = f"{status} {_phrase(status)}\n".encode()
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append(("Retry-After", "1"))
        await self.begin(status, "", headers)
        if self._method != "HEAD":
            await self.send(h11.Data(data=text))
        await self.send(h11.EndOfMessage())

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        body = Body(self._bodies)
        try:
            request = await self._request()
            if request is None:
                return False
            self._busy = True
            await self._read_body(request, body)
            await self._respond(Exchange(self, request, body))
        except BadRequestError as error:
            await self._turn_away(error.status)
            return False
        except h11.RemoteProtocolError as error:
            await self._turn_away(error.error_status_hint)
            return False
        finally:
            body.close()
            self._busy = False
        return not self._last and self._http.our_state is self._http.their_state is h11.DONE

    async def _turn_away(self, status: int) -> None:
        """Refuse, and hear out a client that still sends: closed at once, it would lose the answer."""
        await self.refuse(status)
        with suppress(OSError):
            self._writer.write_eof()
        left = _LINGER_BYTES
        async with within(_LINGER_S):
            while left > 0 and (data := await self._reader.read(_READ)):
                left -= len(data)

    async def _request(self) -> Request | None:
        """The next request, checked; None where none comes.

        Raises:
            BadRequestError, h11.RemoteProtocolError
        """
        async with within(IDLE_S):
            event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        self._method = event.method.decode("ascii")
        headers = tuple((name.decode("ascii"), value.decode(errors="replace")) for name, value in event.headers)
        request = Request(self._method, event.target.decode("ascii"), headers, event.http_version.decode("ascii"))
        check_request(request)
        return request

    async def _read_body(self, request: Request, body: Body) -> None:
        """Raises `BadRequestError`: 408, 413, 503."""
        lengths = request.all_of("content-length")
        if lengths and int(lengths[0]) > MAX_BODY_BYTES:
            raise BadRequestError(413, f"a body may have {MAX_BODY_BYTES} bytes")
        if self._http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        try:
            async with within(BODY_S):
                while isinstance(event := await self._event(), h11.Data):
                    body.add(bytes(event.data))
        except TimeoutError:
            raise BadRequestError(408, "the body did not come") from None
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError("the client left within its request")

    async def _event(self) -> h11.Event | type[h11.PAUSED] | type[h11.NEED_DATA]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._reader.read(_READ))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "-"
