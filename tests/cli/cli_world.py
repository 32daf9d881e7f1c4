"""The command line called in this process, against answers made by hand."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
import msgspec
from click.testing import CliRunner

from shellwego.cli.root import COMMANDS, root_group
from shellwego.client.context import Context, ContextFile, save
from shellwego.main import HOST_COMMANDS, HOST_SUBCOMMANDS

T = TypeVar("T")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROOT = root_group({**HOST_COMMANDS, **COMMANDS}, HOST_SUBCOMMANDS)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@dataclass
class Machine:
    """Somebody's machine: a home with contexts, an environment, a working directory."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.home / "shellwego" / "config.toml"

    def context(self, name: str, url: str, *, current: bool = True, project: str = "", token: str = "") -> None:
        """Add a context."""
        contexts = self._contexts.put(
            Context(name=name, api_url=url, token=token, project=project), make_current=current
        )
        self._contexts = contexts
        save(self.config, contexts)

    _contexts: ContextFile = field(default_factory=ContextFile)

    def swg(self, *arguments: str, stdin: str = "", **environment: str) -> Ended:
        """Run a command. An error that is no message for people fails the test."""
        variables: dict[str, str | None] = {"XDG_CONFIG_HOME": str(self.home), **self.environment, **environment}
        result = CliRunner().invoke(ROOT, arguments, input=stdin, env=variables, prog_name="swg")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class _Answer:
    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class HandMadeApi:
    """Answers requests by method and path with what it was given, in order; the last answer stays. Anything else is 500."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: dict[tuple[str, str], deque[_Answer]] = defaultdict(deque)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, method: str, path: str, *bodies: object, status: int = 200) -> None:
        """Answer so from now on: bodies as JSON, bytes as they are."""
        encoded = [body if isinstance(body, bytes) else msgspec.json.encode(body) for body in bodies or (b"",)]
        self._answers[method, path] = deque(_Answer(status, body) for body in encoded)

    def first_too_often(self, method: str, path: str, times: int = 1, **fields: str) -> None:
        """Refuse so often what was told to be answered, as to a token that asks too often."""
        body = msgspec.json.encode({"status": 429, "code": "rate-limited", "detail": "too often"})
        headers = {"Retry-After": "0", **fields}
        self._answers[method, path].extendleft([_Answer(429, body, headers)] * times)

    def refuse(self, method: str, path: str, status: int, code: str = "some-code", **fields: object) -> None:
        """Answer with a problem."""
        told = {"title": "T", "status": status, "code": code, "detail": "it went wrong", "trace_id": "f00d", **fields}
        self.answer(method, path, told, status=status)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                path, _, query = self.path.partition("?")
                api.asked.append(Asked(self.command, path, query, dict(self.headers), body))
                answer = api.take(self.command, path)
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = handle_request

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is logged."""

        return Handler

    def take(self, method: str, path: str) -> _Answer:
        answers = self._answers[method, path]
        if not answers:
            return _Answer(500, b"no answer was made for this")
        return answers.popleft() if len(answers) > 1 else answers[0]

    @contextmanager
    def running(self) -> Iterator[HandMadeApi]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def view(kind: type[T], **fields: object) -> T:
    """A resource of the API with these fields, and plain values for the others."""
    hints = get_type_hints(kind)
    return kind(**{name: fields.get(name, _plain(hint)) for name, hint in hints.items()})


def _plain(hint: Any) -> object:
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        return None if type(None) in get_args(hint) else _plain(get_args(hint)[0])
    if origin is Literal:
        return get_args(hint)[0]
    if origin is datetime:
        return NOW
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
        return view(origin)
    made: Callable[[], object] = origin
    return made()


def commands(group: click.Group = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
