"""The server on a real socket, spoken to by the real client: streams, sockets, uploads, TLS, the way it stops."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from shellwego.api import protocol
from shellwego.api.server import ApiServer
from shellwego.client.generated import AppCreate, Client, DeploymentCreate, ExecBody, TokenCreate
from shellwego.client.streams import open_exec, open_logs
from shellwego.client.transport import ApiProblem, Unreachable
from shellwego.client.uploads import load_image
from shellwego.control.loops.outbox import relay_forever
from shellwego.drivers.clock.system import SystemClock
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest
from shellwego.wire.streams import Record, RecordKind, RecordReader, pack
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, World, make_world
from tests.api.test_api_images import docker_save
from tests.api.test_api_streams import log

pytestmark = pytest.mark.real


class Running:
    """The API in a thread of its own, as a process would run it."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._ready: Future[World] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self.loop: asyncio.AbstractEventLoop
        self.server: ApiServer
        self.opened: list[StreamRequest] = []
        self.cancelled = threading.Event()

    def __enter__(self) -> Running:
        self._thread.start()
        self.world = self._ready.result(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.stop)
            self._thread.join(10)
        assert not self._thread.is_alive()

    def do(self, coroutine: Any) -> Any:
        """Run something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    async def _main(self) -> None:
        world = await make_world(self._spool, clock=SystemClock())
        self.server = ApiServer(world.app, self.listener)
        self.loop = asyncio.get_running_loop()
        others = [
            asyncio.ensure_future(world.streams.serve(world.node.id, self._guest)),
            asyncio.ensure_future(relay_forever(world.control)),
        ]
        serving = asyncio.ensure_future(self.server.run())
        await self.server.started()
        self._ready.set_result(world)
        await serving
        for task in others:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _guest(self, request: StreamRequest, stream: DuplexStream) -> None:
        """Echoes input; `flood` writes for ever; logs have three lines."""
        self.opened.append(request)
        if request.kind is StreamKind.LOGS:
            for number in range(3):
                await stream.send(log(float(number), f"line {number}"))
            return
        if request.command == ("flood",):
            try:
                while True:
                    await stream.send(pack(Record(RecordKind.STDOUT, b"x" * 32768)))
            finally:
                self.cancelled.set()
        reader = RecordReader()
        while data := await stream.receive():
            for record in reader.feed(data):
                if record.kind is RecordKind.STDIN_EOF:
                    await stream.send(pack(Record(RecordKind.EXIT, b"\0\0\0\x03")))
                    return
                kind = RecordKind.STDOUT if record.kind is RecordKind.STDIN else RecordKind.STDERR
                await stream.send(pack(Record(kind, record.payload)))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "spool") as running:
        running.do(running.world.deployed())
        running.do(running.world.running())
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.url, OWNER) as client:
        yield client


def test_the_client_and_the_server_understand_each_other(client: Client) -> None:
    app = client.create_app(AppCreate(name="other"), idempotency_key="k")
    assert client.create_app(AppCreate(name="other"), idempotency_key="k") == app
    assert [each.name for each in client.list_apps(sort="name", q="OTH").data] == ["other"]
    deployment = client.create_deployment("shop", DeploymentCreate(port=9000))
    seen = client.wait_deployment("shop", deployment.id, timeout=0)
    assert (seen.release, seen.state) == (2, "pending")
    assert client.capabilities().domain == "localhost"
    client.destroy_app("other")
    assert client.get_app("other").deleting


def test_a_tar_is_uploaded_in_parts_and_loaded(client: Client) -> None:
    tar = docker_save(("hello:v9",), content=b"x" * 20_000_000)
    arrived: list[int] = []
    loaded = load_image(client, io.BytesIO(tar), progress=arrived.append)
    assert [image.reference for image in loaded.data] == ["hello:v9"]
    assert (len(arrived), arrived[-1]) == (3, len(tar))
    with pytest.raises(ApiProblem) as error:
        load_image(client, io.BytesIO(b"no tar"), name="x")
    assert error.value.code == "image-archive"


def test_exec_carries_input_output_resize_and_the_exit_code(running: Running, client: Client) -> None:
    with open_exec(client, "shop", ["sh", "-c", "a b"], rows=24, columns=80) as stream:
        stream.send(Record(RecordKind.STDIN, b"hello"))
        stream.send(Record(RecordKind.RESIZE, b"\0\x18\0\x50"))
        stream.send(Record(RecordKind.STDIN_EOF))
        records = list(stream)
    assert [(record.kind.name, record.payload) for record in records] == [
        ("STDOUT", b"hello"),
        ("STDERR", b"\0\x18\0\x50"),
        ("EXIT", b"\0\0\0\x03"),
    ]
    request = running.opened[-1]
    assert (request.command, request.rows, request.columns) == (("sh", "-c", "a b"), 24, 80)
    assert client.exec_command("shop", ExecBody(command=["x"], stdin="in")).stdout == "in"


def test_a_refused_socket_is_an_ordinary_problem(running: Running, client: Client) -> None:
    cases: tuple[tuple[str, str, list[str], int], ...] = (
        (OWNER, "nothing", ["x"], 404),
        (OWNER, "shop", [], 422),
        (OWNER, "shop", ["a\0"], 422),
        (VIEWER, "shop", ["x"], 403),
        (FOREIGN, "shop", ["x"], 404),
        ("", "shop", ["x"], 401),
    )
    for token, app, command, status in cases:
        with Client(running.url, token) as other, pytest.raises(ApiProblem) as error:
            open_exec(other, app, command)
        assert error.value.status == status
        assert error.value.trace_id
    assert running.opened == []
    with Client(running.url, ADMIN) as admin:
        refused = [r for r in admin.list_audit(action="instances:exec").data if not r.allowed]
    assert len(refused) == 1, "the foreign owner names an app of his own project; the viewer is refused"


def test_a_reader_that_stalls_stops_only_its_own_stream_and_one_that_leaves_ends_it(
    running: Running, client: Client
) -> None:
    with open_exec(client, "shop", ["flood"]) as stalled:
        with open_exec(client, "shop", ["echo"]) as other:
            other.send(Record(RecordKind.STDIN, b"x"))
            assert next(iter(other)).payload == b"x"
        assert next(iter(stalled)).kind is RecordKind.STDOUT
    assert running.cancelled.wait(10)


def test_a_socket_is_closed_when_its_token_is_revoked(running: Running, client: Client) -> None:
    made = client.create_token(TokenCreate(name="short"))
    with Client(running.url, made.secret) as other, open_exec(other, "shop", ["cat"]) as stream:
        client.revoke_token(made.id)
        with pytest.raises(ApiProblem) as error:
            list(stream)
    assert error.value.code == "unauthenticated"


def test_logs_come_as_list_as_events_and_as_records(client: Client) -> None:
    assert [line.text for line in client.get_logs("shop").data] == ["line 0", "line 1", "line 2"]
    stream = client.stream_logs("shop", tail=10)
    assert '"line 0"' in next(stream).data
    stream.close()  # type: ignore[attr-defined]  # a generator
    with open_logs(client, "shop", {"follow": False, "tail": 10}) as socket_:
        assert [record.kind for record in socket_] == [RecordKind.LOG] * 3


def test_events_stream_over_the_socket(client: Client) -> None:
    stream = client.stream_events(last_event_id="0")
    assert next(stream).event == "app.created"
    stream.close()  # type: ignore[attr-defined]  # a generator


def test_the_server_ends_long_streams_when_it_stops(running: Running, client: Client) -> None:
    stream = client.stream_events(last_event_id="0")
    next(stream)
    with open_exec(client, "shop", ["cat"]) as exec_:
        running.stop()
        with pytest.raises((ApiProblem, Unreachable)):
            list(exec_)
    with contextlib.suppress(Unreachable):
        list(stream)
    with pytest.raises(Unreachable):
        client.healthz()


def test_an_endless_head_is_cut_off(running: Running, client: Client) -> None:
    with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(100_000):
                connection.sendall(b"X: " + b"a" * 1000 + b"\r\n")
            raise AssertionError("a hundred megabytes of headers were taken")
    assert client.healthz().status == "ok"


def test_a_connection_that_says_nothing_is_closed(
    running: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.1)
    for first in (b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /"):
        with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
            connection.sendall(first)
            while connection.recv(65536):
                pass
    assert client.healthz().status == "ok"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/apps HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /v1/apps HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/apps HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_do_not_disturb_the_server(running: Running, client: Client, raw: bytes) -> None:
    with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
        connection.sendall(raw)
        connection.settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert b" 500 " not in connection.recv(65536)
    assert client.healthz().status == "ok"
