"""HTTP requests as variables of a WASI command, and its output as an answer: the Common Gateway Interface, RFC 3875. Pure.

Theory. A module that serves is a command that is run once for each request: the request is in its variables and on its
stdin, and what it prints on stdout is the answer, a few header lines before the content. Neither side is trusted. Of a
request only what a variable can carry without being mistaken for something else arrives; of a module's answer only what
cannot change where the answer ends, or how long the connection lives. The syntax of HTTP itself is `h11`'s.

Where the RFC leaves a choice:

- A `Location` without a `Status` is told to the client as 302, also one without a host (RFC 3875, 6.2.2, lets the server
  go there by itself).
- `PATH_INFO` is decoded, so a path in which that would hide something is refused: `..` as a segment, however written; a
  zero byte; bytes that are not UTF-8, which a variable cannot hold. `REQUEST_URI` has it as it came.
- A header with `_` in its name is dropped, as is `Proxy`: `HTTP_…` could not tell it from another. Variables of the VM win
  over headers: no client changes how a module is configured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote_to_bytes

MAX_HEAD_BYTES = 16 * 1024
"""Of a request, and of an answer."""
MAX_HEADERS = 100
SOFTWARE = "plasmavmc"

_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HEAD_END = re.compile(rb"\r?\n\r?\n|^\r?\n")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_STATUS = re.compile(r"([2-5][0-9]{2})(?: ([\x20-\x7e]{0,100}))?")
_DECIMAL = re.compile(r"[0-9]{1,15}")
_OWN_HOPS = frozenset({"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"})
"""Headers about the connection, which is ours, in both directions (RFC 9110, 7.6.1)."""
_NOT_PASSED = _OWN_HOPS | {"proxy", "content-length", "content-type", "transfer-encoding", "expect"}
_META = frozenset(
    {
        "AUTH_TYPE", "CONTENT_LENGTH", "CONTENT_TYPE", "GATEWAY_INTERFACE", "PATH_INFO", "PATH_TRANSLATED", "QUERY_STRING",
        "REMOTE_ADDR", "REMOTE_HOST", "REMOTE_IDENT", "REMOTE_USER", "REQUEST_METHOD", "REQUEST_URI", "SCRIPT_NAME",
        "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "SERVER_SOFTWARE",
    }
)  # fmt: skip
_EMPTY = 204
"""An answer that may not even say a length (RFC 9110, 8.6)."""
_NO_CONTENT = frozenset({_EMPTY, 304})
_UNKNOWN_HOST = "localhost"
_UNKNOWN_ADDRESS = "0.0.0.0"  # noqa: S104 - RFC 3875, 4.1.8, wants an address; nothing listens on it


class BadRequestError(Exception):
    """The request cannot be passed on; `status` says how that is told."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class BadAnswerError(Exception):
    """What the module printed is no answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as its connection had it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    version: str = "1.1"

    def all_of(self, name: str) -> list[str]:
        """The values of a header, in order."""
        return [value for each, value in self.headers if each == name]


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    content_length: int | None = None

    def has_content(self, method: str) -> bool:
        """Whether what follows belongs to the answer; else it is dropped (RFC 9110, 6.4.1)."""
        return method != "HEAD" and self.status not in _NO_CONTENT


def check_request(request: Request) -> None:
    """Refuse what could be understood in two ways, before anything of it is used.

    Raises:
        BadRequestError
    """
    if len(request.headers) > MAX_HEADERS:
        raise BadRequestError(431, f"more than {MAX_HEADERS} headers")
    if len(request.target) + sum(len(name) + len(value) for name, value in request.headers) > MAX_HEAD_BYTES:
        raise BadRequestError(431, f"headers of more than {MAX_HEAD_BYTES} bytes")
    if request.all_of("transfer-encoding") and request.all_of("content-length"):
        raise BadRequestError(400, "a request with both Transfer-Encoding and Content-Length has two lengths")
    if request.method == "CONNECT":
        raise BadRequestError(405, "tunnels are not made")
    _path_of(request)
    _server_of(request)


def variables_of(request: Request, content_length: int, own: Mapping[str, str]) -> dict[str, str]:
    """The variables of the run that answers a request; `own` are those of the VM.

    Raises:
        BadRequestError: see `check_request`.
    """
    path, query, uri = _path_of(request)
    host, port = _server_of(request)
    meta = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": _client_of(request),
        "REQUEST_METHOD": request.method,
        "REQUEST_URI": uri,
        "SCRIPT_NAME": "",
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{request.version}",
        "SERVER_SOFTWARE": SOFTWARE,
    }
    if content_length or request.all_of("content-length"):
        meta["CONTENT_LENGTH"] = str(content_length)
    if types := request.all_of("content-type"):
        meta["CONTENT_TYPE"] = types[0]
    kept = {name: value for name, value in own.items() if name not in _META}
    return {**_header_variables(request.headers), **kept, **meta}


def _header_variables(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        if name in _NOT_PASSED or "_" in name:
            continue
        variable = "HTTP_" + name.upper().replace("-", "_")
        joint = "; " if name == "cookie" else ", "
        found[variable] = f"{found[variable]}{joint}{value}" if variable in found else value
    return found


def _path_of(request: Request) -> tuple[str, str, str]:
    """Decoded path, query, and both as they came (RFC 9112, 3.2)."""
    if request.target == "*" and request.method == "OPTIONS":
        return "*", "", "*"
    target = _ABSOLUTE.sub("", request.target, count=1)
    raw, _, query = target.partition("?")
    if target == request.target and not raw.startswith("/"):
        raise BadRequestError(400, "the target is no path")
    if "#" in target or _ESCAPE.search(raw):
        raise BadRequestError(400, "the path is malformed")
    try:
        path = unquote_to_bytes(raw or "/").decode()
    except UnicodeDecodeError:
        raise BadRequestError(400, "the path is not UTF-8") from None
    if "\0" in path or ".." in re.split(r"[/\\]", path):
        raise BadRequestError(400, "the path leads out of its root")
    return path, query, target if target.startswith("/") else f"/{target}"


def _server_of(request: Request) -> tuple[str, str]:
    """Name and port that the request was sent to."""
    hosts = request.all_of("host")
    absolute = _ABSOLUTE.match(request.target)
    if absolute is not None and [absolute[1].lower()] != [host.lower() for host in hosts]:
        raise BadRequestError(400, "the target names another host than the header")
    if hosts in ([], [""]):
        return _UNKNOWN_HOST, "80"
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if found is None:
        raise BadRequestError(400, "the host is malformed")
    return found[1], found[2] or "80"


def _client_of(request: Request) -> str:
    """Who asked, as the server before us says it: that adds its client at the end. Without one, nobody knows."""
    said = ",".join(request.all_of("x-forwarded-for")).rpartition(",")[2].strip()
    try:
        return str(ip_address(said))
    except ValueError:
        return _UNKNOWN_ADDRESS


def find_head(output: bytes) -> tuple[bytes, bytes] | None:
    """Head and what follows it; None where the head is not complete yet.

    Raises:
        BadAnswerError: it will never be.
    """
    found = _HEAD_END.search(output)
    if found is not None and found.end() <= MAX_HEAD_BYTES:
        return output[: found.start()], output[found.end() :]
    if found is not None or len(output) >= MAX_HEAD_BYTES:
        raise BadAnswerError(f"its headers are longer than {MAX_HEAD_BYTES} bytes, or it printed none")
    return None


def parse_head(raw: bytes) -> Head:
    """The head of an answer (RFC 3875, 6.2 and 6.3).

    Raises:
        BadAnswerError
    """
    fields = [_field(line) for line in raw.replace(b"\r\n", b"\n").split(b"\n")]
    if len(fields) > MAX_HEADERS:
        raise BadAnswerError(f"more than {MAX_HEADERS} headers")
    status, location = _only(fields, "status"), _only(fields, "location")
    if status is None and location is None and _only(fields, "content-type") is None:
        raise BadAnswerError("none of Content-Type, Location and Status is among its headers")
    if any(name.lower() == "transfer-encoding" for name, _ in fields):
        raise BadAnswerError("Transfer-Encoding is not a module's to say")
    code, reason = _status(status) if status is not None else (302 if location is not None else 200, "")
    dropped = _OWN_HOPS | {"status", "content-length"}
    kept = tuple((name, value) for name, value in fields if name.lower() not in dropped)
    return Head(code, reason, kept, _length(fields) if code != _EMPTY else None)


def _field(line: bytes) -> tuple[str, str]:
    try:
        name, colon, value = line.decode().partition(":")
    except UnicodeDecodeError:
        raise BadAnswerError("a header is not UTF-8") from None
    value = value.strip(" \t")
    if not colon or not _NAME.fullmatch(name) or _CONTROL.search(value):
        raise BadAnswerError(f"“{_shown(line)}” is no header")
    return name, value


def _status(text: str) -> tuple[int, str]:
    found = _STATUS.fullmatch(text)
    if found is None:
        raise BadAnswerError(f"the status “{_shown(text.encode())}” is not one of 200 to 599")
    return int(found[1]), found[2] or ""


def _length(fields: Iterable[tuple[str, str]]) -> int | None:
    text = _only(fields, "content-length")
    if text is None:
        return None
    if not _DECIMAL.fullmatch(text):
        raise BadAnswerError(f"the length “{_shown(text.encode())}” is no number")
    return int(text)


def _only(fields: Iterable[tuple[str, str]], wanted: str) -> str | None:
    found = [value for name, value in fields if name.lower() == wanted]
    if len(found) > 1:
        raise BadAnswerError(f"it has more than one {wanted}")
    return found[0] if found else None


def _shown(text: bytes) -> str:
    """What a module printed, for its log."""
    return "".join(character if character.isprintable() else "?" for character in text[:60].decode(errors="replace"))
