"""How requests reach the API: `http.client` over TCP, TLS or a unix socket, and answers or typed errors come back.

One connection is kept and used again. A request is sent twice only where nothing can have happened the first time: the
connection was refused, or the request changes nothing (GET) or can be repeated (an idempotency key; a part of an upload,
which says where it belongs), and a kept connection had gone stale. One that was refused because the token had asked too
often is sent again once it may be: nothing has happened then.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import msgspec

T = TypeVar("T")

JSON = "application/json"
_TIMEOUT_S = 100.0
_MAX_ANSWER = 64 * 1024 * 1024
_REFUSED_PAUSES_S = (0.1, 0.3, 0.6)
_REPEATABLE = frozenset({"GET", "PUT", "DELETE"})
_TOO_OFTEN = "rate-limited"
_PATIENCE_S = 300.0
"""A request waits so long in all for the token to be let in again."""
_SHORTEST_S = 0.1
_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)

Query = Mapping[str, str | int | float | bool | None]
Body = bytes | Iterable[bytes]


class FieldProblem(msgspec.Struct, frozen=True):
    """One fault of a request."""

    field: str
    code: str
    message: str
    value: str | None = None


class _Problem(msgspec.Struct, frozen=True):
    """RFC 9457, as the API writes it."""

    title: str = ""
    status: int = 0
    detail: str = ""
    code: str = "unknown"
    trace_id: str = ""
    resolution: str = ""
    errors: tuple[FieldProblem, ...] = ()


class ApiProblem(Exception):
    """The API refused, or failed. `code` is stable; `resolution` says what to do, where that is known."""

    def __init__(self, status: int, problem: _Problem) -> None:
        super().__init__(problem.detail or problem.title or f"HTTP {status}")
        self.status = status
        self.code = problem.code
        self.detail = problem.detail or problem.title
        self.resolution = problem.resolution
        self.trace_id = problem.trace_id
        self.errors = problem.errors


class Unreachable(Exception):
    """No answer came: no connection, no name, broken off, or not our API."""


class BrokenOff(Unreachable):
    """An answer had begun, and was broken off."""


class UnusableName(ValueError):
    """What was given for the name or id of a thing can be neither; nothing was asked."""

    def __init__(self, kind: str, value: str) -> None:
        super().__init__(f"“{value[:200]}” can be neither the name nor the id of the {kind} that is meant")


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: str
    headers: Mapping[str, str]
    body: Body | None

    @property
    def whole(self) -> bool:
        """Whether all of it is still there after it was sent."""
        return self.body is None or isinstance(self.body, bytes)

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once."""
        named = "Idempotency-Key" in self.headers or "Content-Range" in self.headers
        return self.whole and (self.method in _REPEATABLE or named)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Transport:
    """Sends requests of one token to one API.

    `api_url` is `http://host:port`, `https://host:port`, or `unix:/path/of/socket`.

    Raises:
        ValueError: the URL is none of these.
    """

    def __init__(self, api_url: str, token: str = "", *, ca_file: str = "") -> None:
        self.api_url = api_url.rstrip("/")
        self.token = token
        self.ca_file = ca_file
        self._parts = _parts(self.api_url)
        if self._parts.scheme not in ("http", "https", "unix") or not (self._parts.netloc or self._parts.path):
            raise ValueError(f"not the URL of an API: {api_url!r}")
        self._kept: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connection."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def tls(self) -> ssl.SSLContext | None:
        """For https: the system's authorities, or the one of the context."""
        if self._parts.scheme != "https":
            return None
        return ssl.create_default_context(cafile=self.ca_file or None)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str | None] | None = None,
        body: Body | None = None,
        timeout: float = _TIMEOUT_S,
    ) -> bytes:
        """One request; returns the answer's body. Where the token has asked too often it waits as long as the API says, for
        some minutes at most.

        Raises:
            ApiProblem: the API answered with an error.
            Unreachable: it did not answer.
        """
        request = _Request(method, target(path, query), self.header_fields(headers, body), body)
        patience = Patience()
        while True:
            with _told(self.api_url):
                response = self._exchange(request, timeout)
                content = response.read(_MAX_ANSWER)
            if response.will_close:
                self.close()
            if response.status < 400:
                return content
            refused = problem(response.status, content)
            if not (request.whole and patience.waited(refused, response.headers.get("Retry-After"))):
                raise refused

    def stream(
        self,
        path: str,
        query: Query | None = None,
        headers: Mapping[str, str | None] | None = None,
        timeout: float = 60.0,
    ) -> Iterator[bytes]:
        """The lines of a long answer, on a connection of its own; raises as `send`. The server sends something at least
        every quarter of a minute, so a silence of `timeout` seconds is a broken connection (`BrokenOff`)."""
        connection = self.connect(timeout)
        try:
            with _told(self.api_url):
                response = self._begun(connection, target(path, query), self.header_fields(headers, None))
            with _told(self.api_url, begun=True):
                yield from response
        finally:
            connection.close()

    def _begun(
        self, connection: http.client.HTTPConnection, url: str, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        patience = Patience()
        while True:
            connection.request("GET", url, headers=headers)
            response = connection.getresponse()
            if response.status < 400:
                return response
            refused = problem(response.status, response.read(_MAX_ANSWER))
            if not patience.waited(refused, response.headers.get("Retry-After")):
                raise refused

    def header_fields(self, headers: Mapping[str, str | None] | None, body: Body | None) -> dict[str, str]:
        """The headers of a request, with the token."""
        fields = {name: value for name, value in (headers or {}).items() if value is not None}
        if self.token:
            fields["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            fields.setdefault("Content-Type", JSON)
        return fields

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """A new connection, not yet open."""
        host, port = self._parts.hostname or "", self._parts.port
        match self._parts.scheme:
            case "unix":
                return _UnixConnection(self._parts.path, timeout)
            case "https":
                return http.client.HTTPSConnection(host, port, timeout=timeout, context=self.tls())
            case _:
                return http.client.HTTPConnection(host, port, timeout=timeout)

    def _exchange(self, request: _Request, timeout: float) -> http.client.HTTPResponse:
        kept, self._kept = self._kept, None
        if kept is not None and request.repeatable:
            try:
                return self._send_on(kept, request, timeout)
            except _STALE:
                kept.close()
        elif kept is not None:
            kept.close()
        return self._send_new(request, timeout)

    def _send_new(self, request: _Request, timeout: float) -> http.client.HTTPResponse:
        for pause in (*_REFUSED_PAUSES_S, None):
            try:
                return self._send_on(self.connect(timeout), request, timeout)
            except ConnectionRefusedError:
                if pause is None or not request.repeatable:
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt raises or returns")

    def _send_on(
        self, connection: http.client.HTTPConnection, request: _Request, timeout: float
    ) -> http.client.HTTPResponse:
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        try:
            connection.request(request.method, request.url, body=request.body, headers=request.headers)
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        self._kept = connection
        return response


class Patience:
    """How long one request may yet wait for a token that has asked too often."""

    def __init__(self) -> None:
        self._left = _PATIENCE_S

    def waited(self, refused: ApiProblem, retry_after: str | None) -> bool:
        """True after the wait that the refusal asks for by its header Retry-After; False, at once, where it asks for none or
        for too long a one."""
        if refused.code != _TOO_OFTEN or not re.fullmatch("[0-9]{1,6}", retry_after or ""):
            return False
        pause = max(float(retry_after or 0), _SHORTEST_S)
        self._left -= pause
        if self._left < 0:
            return False
        time.sleep(pause)
        return True


class _told:
    """Within it, whatever goes wrong on the way is `Unreachable`; a length that is none is a `ValueError` there."""

    def __init__(self, api_url: str, *, begun: bool = False) -> None:
        self._api_url = api_url
        self._begun = begun

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, http.client.HTTPException, ValueError)):
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if self._begun:
                raise BrokenOff(f"the answer of the API at {self._api_url} was broken off: {said}") from error
            raise Unreachable(f"the API at {self._api_url} cannot be reached: {said}") from error


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed when it is asked for
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise ValueError(f"not the URL of an API: {url!r}: {error}") from error
    return parts


def target(path: str, query: Query | None) -> str:
    """Path and query of a request, without parameters that are None."""
    given = {name: _text(value) for name, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def segment(value: str, kind: str) -> str:
    """The name or id of a thing of this kind as one segment of a path.

    Raises:
        UnusableName: it cannot be one. Encoded, a slash would still end a segment for most servers and proxies, and a
            segment of dots is taken out of a path (RFC 3986, section 5.2.4), so another thing would be asked for.
    """
    if not value or "/" in value or value in (".", ".."):
        raise UnusableName(kind, value)
    return quote(value, safe="")


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def encode(body: object) -> bytes:
    """A body as JSON."""
    return msgspec.json.encode(body)


def decode(content: bytes, kind: type[T]) -> T:
    """An answer's body; fields of a newer API are passed over.

    Raises:
        Unreachable: what answered is not our API.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unreachable(f"the answer is not one of this API: {error}") from error


def problem(status: int, content: bytes, kind: type[ApiProblem] = ApiProblem) -> ApiProblem:
    """The error that an answer tells of, as one of this kind."""
    try:
        return kind(status, msgspec.json.decode(content, type=_Problem))
    except (msgspec.MsgspecError, RecursionError):
        return kind(status, _Problem(status=status, detail=f"HTTP {status}, and not from the API; see its URL"))
