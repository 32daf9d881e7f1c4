"""What the tests of the edge share: a control plane of one table, apps on loopback, a listening socket, a running edge."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shellwego.core.errors import ForbiddenError, UnavailableError
from shellwego.core.routing import EdgeReport, Endpoint, Route, RouteState, RouteTable
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.edge.daemon import Edge
from shellwego.edge.processes import haproxy_processes
from shellwego.edge.runtime import ask
from shellwego.edge.settings import LOOPBACK, EdgeSettings, Layout, Timeouts
from shellwego.wire import subjects


class OneTable:
    """The control plane's side of the uplink: the table that a test set last, and the reports it got."""

    def __init__(self, bus: MemoryBus | None = None) -> None:
        self.table = RouteTable(version=0)
        self.reports: list[EdgeReport] = []
        self.reachable = True
        self.registered: list[str] = []
        self._bus = bus

    async def register_edge(self, name: str) -> str:
        self._answer()
        self.registered.append(name)
        return f"edg_{len(self.registered)}"

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        self._known(edge_id)
        return None if known_version == self.table.version else self.table

    async def report_edge(self, report: EdgeReport) -> None:
        self._known(report.edge_id)
        self.reports.append(report)

    async def set(self, *routes: Route) -> int:
        """Publish a table with these routes; returns its version."""
        self.table = RouteTable(version=self.table.version + 1, routes=routes)
        if self._bus is not None:
            await self._bus.publish(subjects.ROUTES)
        return self.table.version

    def forget(self) -> None:
        """As if the database had been lost: no edge is known any more."""
        self.registered.clear()

    @property
    def last(self) -> EdgeReport:
        return self.reports[-1] if self.reports else EdgeReport(edge_id="", applied_version=-1)

    def _known(self, edge_id: str) -> None:
        self._answer()
        if edge_id != f"edg_{len(self.registered)}":
            raise ForbiddenError("unknown-edge", "this edge is not known")

    def _answer(self) -> None:
        if not self.reachable:
            raise UnavailableError("uplink-unavailable", "the control plane does not answer")


@dataclass(slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    names: tuple[str, ...] = ()
    """Header names as they came, doubled ones too."""


class Backend:
    """An app instance: an HTTP/1.1 server that answers with its name and remembers what it was asked.

    `/slow?SECONDS` answers late, `/drop` breaks off, `/ws` echoes after an upgrade.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[Request] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, path: Path | None = None, port: int = 0) -> None:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._accept, str(path))
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def endpoint(self, weight: int = 100) -> Endpoint:
        return Endpoint(instance_id=f"ins_{self.name}", address=f"tcp:127.0.0.1:{self.port}", weight=weight)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await read_request(reader)
        if request is None:
            return False
        self.requests.append(request)
        if request.path == "/drop":
            return False
        if request.path == "/ws":
            await self._echo(reader, writer)
            return False
        if request.path.startswith("/slow?"):
            await asyncio.sleep(float(request.path.partition("?")[2]))
        body = self.name.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        return True

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        while data := await reader.read(1024):
            writer.write(data)
            await writer.drain()


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    line = (await reader.readline()).decode().split()
    if not line:
        return None
    pairs = []
    while (raw := (await reader.readline()).decode().strip()) != "":
        name, _, value = raw.partition(":")
        pairs.append((name.lower(), value.strip()))
    headers = dict(pairs)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(line[0], line[1], headers, body, tuple(name for name, _ in pairs))


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def error(self) -> str:
        """The name of the edge's own page; empty for an app's answer."""
        return self.headers.get("x-shellwego-error", "")


class Client:
    """A keep-alive HTTP/1.1 client that never retries a request: what fails, fails.

    As RFC 9112 (9.3.1) allows, it opens a new connection where the server had closed the old one *between* requests.
    """

    def __init__(self, port: int, host: str = "hello.localhost", source: str = "127.0.0.1") -> None:
        self._port = port
        self._host = host
        self._source = source
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def get(self, path: str = "/", **options: str) -> Answer:
        return await self.request("GET", path, **options)

    async def post(self, body: bytes, path: str = "/") -> Answer:
        return await self.request("POST", path, body=body)

    async def request(self, method: str, path: str = "/", *, host: str = "", body: bytes = b"") -> Answer:
        size = f"Content-Length: {len(body)}\r\n" if body else ""
        return await self.raw(
            f"{method} {path} HTTP/1.1\r\nHost: {host or self._host}\r\n{size}\r\n".encode() + body, method
        )

    async def raw(self, data: bytes, method: str = "GET") -> Answer:
        """Send these bytes and read one answer."""
        reader, writer = await self.connection()
        writer.write(data)
        answer = await read_answer(reader, method)
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is not None and self._reader.at_eof():
            self.close()
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self._port, local_addr=(self._source, 0)
            )
        return self._reader, self._writer


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answer:
    line = (await reader.readline()).decode().split(maxsplit=2)
    if len(line) < 2:
        raise ConnectionError("the connection was closed instead of an answer")
    headers = {}
    while (raw := (await reader.readline()).decode().strip()) != "":
        name, _, value = raw.partition(":")
        headers[name.lower()] = value.strip()
    size = 0 if method == "HEAD" or line[1] == "101" else int(headers.get("content-length", "0"))
    return Answer(int(line[1]), headers, await reader.readexactly(size))


def route(*endpoints: Endpoint, app: str = "hello", host: str = "", state: RouteState = RouteState.SERVING) -> Route:
    return Route(host=host or f"{app}.localhost", app_id=f"app_{app}", app_name=app, state=state, endpoints=endpoints)


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for an observation, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@dataclass
class Rig:
    """An edge with what belongs to it. Directories and port outlive `run` blocks: a second one is a restart."""

    run_dir: Path
    state_dir: Path
    port: int
    bus: MemoryBus = field(default_factory=MemoryBus)
    pool_size: int = 16
    pool_limit: int = 1024
    answer_s: float = 15.0
    max_connections: int = 2000
    connections_per_source: int = 0
    connections_per_app: int = 0
    balancers: tuple[str, ...] = LOOPBACK
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(keep_alive=30, hard_stop=60))
    placed: list[int] = field(default_factory=list)
    listened: int = 0

    def __post_init__(self) -> None:
        self.control = OneTable(self.bus)

    @property
    def settings(self) -> EdgeSettings:
        return EdgeSettings(
            name="edge-test",
            run_dir=self.run_dir,
            state_dir=self.state_dir,
            pool_size=self.pool_size,
            pool_limit=self.pool_limit,
            unresponsive_s=self.answer_s,
            threads=2,
            max_connections=self.max_connections,
            connections_per_source=self.connections_per_source,
            connections_per_app=self.connections_per_app,
            balancers=self.balancers,
            timeouts=self.timeouts,
            stop_grace_s=2.0,
        )

    def edge(self) -> Edge:
        return Edge(self.control, self.bus, SystemClock(), self.settings, listen=self.listen, place=self.place)

    async def listen(self) -> int:
        listener = bind(self.port)
        self.listened += 1
        return listener.detach()

    async def place(self, pid: int, start_time: int) -> str:
        self.placed.append(pid)
        return "rlimits"

    @asynccontextmanager
    async def run(self, *, keep: bool = False) -> AsyncIterator[Edge]:
        """A running edge; with `keep`, HAProxy outlives it, as if the edge alone had been killed."""
        edge = self.edge()
        await edge.open()
        task = asyncio.create_task(edge.run())
        try:
            yield edge
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await edge.close(keep=keep)

    async def serve(self, *routes: Route) -> None:
        """Publish routes and wait until the edge says that it applied them."""
        version = await self.control.set(*routes)
        await self.applied(version)

    async def applied(self, version: int) -> None:
        await eventually(lambda: self.control.last.applied_version == version)

    def client(self, host: str = "hello.localhost", source: str = "127.0.0.1") -> Client:
        return Client(self.port, host, source)


@contextmanager
def fresh_rig(owner: int = 0) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="swg-edge-") as directory:
        run_dir, state_dir = Path(directory, "run"), Path(directory, "state")
        Path(directory).chmod(0o711)
        for path in (run_dir, state_dir):
            path.mkdir(mode=0o700)
            os.chown(path, owner or os.geteuid(), -1)
        yield Rig(run_dir, state_dir, free_port())
        for process in haproxy_processes(Layout(run_dir)):
            os.kill(process.pid, signal.SIGKILL)


def layout(rig: Rig) -> Layout:
    return Layout(rig.run_dir)


async def admin(rig: Rig, command: str) -> str:
    return await ask(layout(rig).admin_socket, command)


async def reload(rig: Rig) -> None:
    """A reload without our doing; the edge must find its way."""
    await ask(layout(rig).master_socket, "reload")


def bind(port: int = 0) -> socket.socket:
    """A listening socket as the root helper makes it: no SO_REUSEPORT."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def free_port() -> int:
    with bind() as listener:
        return int(listener.getsockname()[1])


@asynccontextmanager
async def backends(*names: str) -> AsyncIterator[list[Backend]]:
    """Running app instances."""
    made = [Backend(name) for name in names]
    for backend in made:
        await backend.start()
    try:
        yield made
    finally:
        for backend in made:
            await backend.stop()


@asynccontextmanager
async def steady_load(
    rig: Rig, clients: int, host: str = "hello.localhost", pause_s: float = 0.01
) -> AsyncIterator[list[str]]:
    """Keep-alive clients, half of which POST; yields the list of failures, which must stay empty."""
    failures: list[str] = []
    going = True

    async def hammer(number: int) -> None:
        async with rig.client(host) as client:
            while going:
                try:
                    answer = await (client.post(b"x" * 100) if number % 2 else client.get())
                    if answer.status != 200:
                        failures.append(f"client {number}: {answer.status} {answer.error}")
                except (OSError, asyncio.IncompleteReadError) as error:
                    failures.append(f"client {number}: {error!r}")
                    client.close()
                await asyncio.sleep(pause_s)

    tasks = [asyncio.create_task(hammer(number)) for number in range(clients)]
    try:
        yield failures
    finally:
        going = False
        await asyncio.gather(*tasks)


def is_alive(pid: int) -> bool:
    """True for a process that runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pid: int) -> None:
    """As hard as it goes."""
    os.kill(pid, 9)
