"""Streams of the API: server-sent events, and the WebSockets of exec and console.

`websockets` is imported when the first socket is opened, because most commands open none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec

from shellwego.client.transport import ApiProblem, Patience, Query, Transport, Unreachable, problem, segment
from shellwego.wire.streams import Record, RecordError, RecordKind, RecordReader, pack

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_OPEN_S = 30.0
_CLOSE_S = 1.0
"""For the closing handshake; a guest that floods may keep its answer from coming in time."""
_MAX_MESSAGE = 1024 * 1024


class StreamError(ApiProblem):
    """The API ended a stream that it had begun, with an error."""


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One event: `data` is JSON, `id` resumes a stream after it."""

    event: str
    data: str
    id: str = ""


def events(lines: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Cut the lines of an answer into events (WHATWG HTML, section 9.2.6).

    Raises:
        StreamError: the API ended the stream with an error.
    """
    name, id_ = "message", ""
    data: list[str] = []
    for line in lines:
        field, _, value = line.decode(errors="replace").rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            id_ = value
        elif not field and not value and data:
            event = ServerSentEvent(name, "\n".join(data), id_)
            name, data = "message", []
            if event.event == "error":
                raise problem(503, event.data.encode(), StreamError)
            yield event


class RecordSocket:
    """An open exec or log stream, used in a `with`: records go out by `send`, and come in by iterating.

    Sending and iterating may happen in two threads.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._reader = RecordReader()

    def __enter__(self) -> RecordSocket:
        self._connection.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.__exit__(kind, error, trace)

    def send(self, record: Record) -> None:
        """Send a record; waits while the other side has no room.

        Raises:
            Unreachable: the stream is over.
        """
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415 - see the module's head

        try:
            self._connection.send(pack(record))
        except (ConnectionClosed, OSError) as error:
            raise Unreachable(f"the stream was broken off: {error}") from error

    def __iter__(self) -> Iterator[Record]:
        """Records until the stream ends.

        Raises:
            ApiProblem: it ended with an error.
            Unreachable: it was broken off.
        """
        from websockets.exceptions import ConnectionClosedError  # noqa: PLC0415 - see the module's head

        try:
            for message in self._connection:
                for record in self._reader.feed(message if isinstance(message, bytes) else message.encode()):
                    if record.kind is RecordKind.ERROR:
                        raise _error(record)
                    yield record
        except (ConnectionClosedError, RecordError, OSError) as error:
            raise Unreachable(f"the stream was broken off: {error}") from error


def open_exec(
    transport: Transport,
    app: str,
    command: Iterable[str],
    *,
    project: str | None = None,
    instance: str | None = None,
    process: str | None = None,
    rows: int = 0,
    columns: int = 0,
) -> RecordSocket:
    """Run a command in an instance, on a terminal where `rows` and `columns` are given; raises as `Transport.send`."""
    query: list[tuple[str, str]] = [("command", argument) for argument in command]
    given = {"project": project, "instance": instance, "process": process}
    query += [(name, value) for name, value in given.items() if value]
    if rows and columns:
        query += [("rows", str(rows)), ("columns", str(columns))]
    return _open(transport, f"/v1/apps/{segment(app, 'app')}/exec", urlencode(query))


def open_logs(transport: Transport, app: str, query: Query) -> RecordSocket:
    """The log of one instance as records; `query` as the API's. Raises as `Transport.send`."""
    given = {name: str(value).lower() for name, value in query.items() if value is not None}
    return _open(transport, f"/v1/apps/{segment(app, 'app')}/logs", urlencode(given))


def _open(transport: Transport, path: str, query: str) -> RecordSocket:
    from websockets.exceptions import InvalidStatus  # noqa: PLC0415 - see the module's head

    patience = Patience()
    while True:
        try:
            return _opened(transport, path, query)
        except InvalidStatus as answer:
            refused = problem(answer.response.status_code, bytes(answer.response.body or b""))
            if not patience.waited(refused, answer.response.headers.get("Retry-After")):
                raise refused from answer


def _opened(transport: Transport, path: str, query: str) -> RecordSocket:
    from websockets.exceptions import InvalidStatus, WebSocketException  # noqa: PLC0415 - see the module's head
    from websockets.sync.client import connect, unix_connect  # noqa: PLC0415

    headers = transport.header_fields(None, None)
    try:
        if transport.api_url.startswith("unix:"):
            uri = f"ws://localhost{path}?{query}"
            socket_path = transport.api_url.removeprefix("unix:")
            connection = unix_connect(
                socket_path,
                uri,
                additional_headers=headers,
                open_timeout=_OPEN_S,
                close_timeout=_CLOSE_S,
                max_size=_MAX_MESSAGE,
            )
        else:
            uri = f"ws{transport.api_url.removeprefix('http')}{path}?{query}"
            connection = connect(
                uri,
                additional_headers=headers,
                open_timeout=_OPEN_S,
                close_timeout=_CLOSE_S,
                max_size=_MAX_MESSAGE,
                ssl=transport.tls(),
                proxy=None,
            )
    except InvalidStatus:
        raise
    except (OSError, TimeoutError, WebSocketException) as error:
        raise Unreachable(f"the API at {transport.api_url} cannot be reached: {error}") from error
    return RecordSocket(connection)


def _error(record: Record) -> ApiProblem:
    code, _, message = record.payload.decode(errors="replace").partition("\0")
    return problem(503, msgspec.json.encode({"code": code or "stream-failed", "detail": message}))
