"""The server on a real socket, spoken to by the real client: streams, sockets, uploads, TLS, the way it stops."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shellwego.api import protocol, server
from shellwego.api.origins import Origins
from shellwego.api.protocol import MAX_PIECES, BoundedHttp
from shellwego.api.rest.shares import Shares
from shellwego.api.server import Tls
from shellwego.boot.logs import REFUSED_HANDSHAKE
from shellwego.client.generated import AppCreate, Client, DeploymentCreate, ExecBody, TokenCreate, UploadView
from shellwego.client.streams import open_exec, open_logs
from shellwego.client.transport import ApiProblem, Unreachable
from shellwego.client.uploads import load_image
from shellwego.control import rights
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.clock import Clock
from shellwego.ports.store import Store
from shellwego.wire.streams import Record, RecordKind
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, add_user, withdraw_grants
from tests.api.running_api import Running
from tests.api.test_api_images import docker_save
from tests.control.away_store import AwayStore
from tests.rpc.test_rpc_transport import Authority

pytestmark = pytest.mark.real


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


def test_the_client_waits_where_its_token_has_asked_too_often(running: Running) -> None:
    with Client(running.url, FOREIGN) as client:
        people = {client.get_user().id for _ in range(22)}
        assert len(people) == 1
        for _ in range(3):
            with pytest.raises(ApiProblem) as refused:
                open_exec(client, "shop", ["true"])
            assert refused.value.status == 404


def test_a_tar_is_uploaded_in_parts_and_loaded(client: Client) -> None:
    tar = docker_save(("hello:v9",), content=b"x" * 20_000_000)
    arrived: list[int] = []
    loaded = load_image(client, io.BytesIO(tar), progress=arrived.append)
    assert [image.reference for image in loaded.data] == ["hello:v9"]
    assert (len(arrived), arrived[-1]) == (3, len(tar))
    with pytest.raises(ApiProblem) as error:
        load_image(client, io.BytesIO(b"no tar"), name="x")
    unread = io.BytesIO(b"not looked at")
    with pytest.raises(ApiProblem, match="bad name"):
        load_image(client, unread, name="bad name")
    assert unread.tell() == 0
    assert error.value.code == "image-archive"


def test_an_upload_whose_server_is_gone_is_begun_anew_and_not_for_ever(running: Running, client: Client) -> None:
    tar = docker_save(("hello:v9",), content=b"x" * 20_000_000)
    arrived: list[int] = []

    def lose(offset: int, *, times: int = 1) -> None:
        """As if another server of the platform answered from now on."""
        arrived.append(offset)
        if len(arrived) <= times:
            running.world.app.state.context.spool.open()
            running.world.app.state.context.spool._uploads.clear()

    loaded = load_image(client, io.BytesIO(tar), progress=lose)
    assert [image.reference for image in loaded.data] == ["hello:v9"]
    assert (len(arrived), arrived[-1]) == (4, len(tar))
    with pytest.raises(ApiProblem, match="no upload"):
        load_image(client, io.BytesIO(tar), progress=partial(lose, times=100))


def test_an_upload_goes_over_one_connection_and_bears_to_lose_it_or_an_answer(
    running: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = docker_save(("hello:v9",), content=b"x" * 20_000_000)
    connections: list[http.client.HTTPConnection] = []
    connect, append = client.connect, client.append_upload
    monkeypatch.setattr(client, "connect", lambda timeout: connections.append(connect(timeout)) or connections[-1])
    load_image(client, io.BytesIO(tar))
    assert len(connections) == 1

    def twice(*words: Any, **named: Any) -> UploadView:
        """A part whose answer is lost with the connection, so that it is sent again."""
        append(*words, **named)
        return append(*words, **named)

    monkeypatch.setattr(client, "append_upload", twice)
    assert [image.reference for image in load_image(client, io.BytesIO(tar)).data] == ["hello:v9"]


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


def test_a_refused_socket_is_an_ordinary_problem(
    running: Running, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
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
    errors = {record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR}
    assert errors == {REFUSED_HANDSHAKE}, "uvicorn says so of each; the platform's log leaves it out"
    with Client(running.url, ADMIN) as admin:
        refused = [r for r in admin.list_audit(action="instances:exec").data if not r.allowed]
    assert len(refused) == 1, "the foreign owner names an app of his own project; the viewer is refused"


@pytest.mark.parametrize(
    ("socket_", "query", "field"),
    [
        ("exec", "command=x&token=secret", "token"),
        ("exec", "command=x&rows=1&columns=1&rows=2", "rows"),
        ("exec", "command=x&instance=a%00", "instance"),
        ("logs", "command=x", "command"),
        ("logs", "process=a%00", "process"),
        ("logs", "tail=1&project=a&project=b", "project"),
    ],
)
def test_a_socket_refuses_parameters_as_every_operation_does(
    running: Running, socket_: str, query: str, field: str
) -> None:
    with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
        connection.sendall(
            f"GET /v1/apps/shop/{socket_}?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OWNER}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        told = json.loads(answer.read())
    assert (answer.status, [each["field"] for each in told["errors"]]) == (400, [field])


def test_a_server_that_leaves_is_not_ready_and_serves_until_its_clients_are_elsewhere(
    running: Running, client: Client
) -> None:
    kept = http.client.HTTPConnection(running.url.removeprefix("http://"))
    assert answer(kept, "/readyz") == (200, None)
    running.loop.call_soon_threadsafe(running.server.leave)
    eventually(lambda: answer(kept, "/readyz")[0] == 503)
    assert answer(kept, "/healthz") == (200, "close"), "each connection ends with its next answer"
    assert client.get_app("shop").name == "shop", "who comes all the same is served"
    with open_exec(client, "shop", ["sh"]) as stream:
        stream.send(Record(RecordKind.STDIN_EOF))
        assert [record.kind for record in stream] == [RecordKind.EXIT], "streams too"


def answer(connection: http.client.HTTPConnection, path: str) -> tuple[int, str | None]:
    """Status, and whether the connection ends."""
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status, response.getheader("Connection")


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


def test_a_socket_is_closed_when_its_holder_loses_the_right_to_it(running: Running) -> None:
    world, token = running.world, f"pat_{'L' * 43}"
    made = running.do(world.commit(lambda unit: add_user(unit, "l@x", "developer", world.project.id, token)))
    with Client(running.url, token) as other, open_exec(other, "shop", ["cat"]) as stream:
        running.do(world.commit(lambda unit: withdraw_grants(unit, made.principal_id)))
        with pytest.raises(ApiProblem) as error:
            list(stream)
    assert error.value.code == "instance-not-found"


def test_a_socket_outlasts_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "CHECK_S", 0.02)
    stores: list[AwayStore] = []

    def make_store(clock: Clock) -> Store:
        stores.append(AwayStore(MemoryStore(clock)))
        return stores[0]

    with Running(tmp_path / "spool", make_store) as running:
        running.do(running.world.deployed())
        running.do(running.world.running())
        with Client(running.url, OWNER) as client, open_exec(client, "shop", ["cat"]) as stream:
            stores[0].away = True
            eventually(lambda: stores[0].unanswered >= 20)
            stores[0].away = False
            stream.send(Record(RecordKind.STDIN, b"x"))
            assert next(iter(stream)).payload == b"x"


@contextlib.contextmanager
def bare_socket(running: Running, command: str) -> Iterator[socket.socket]:
    """A WebSocket whose frames the test makes, of a client that takes in little."""
    key = b"dGhlIHNhbXBsZSBub25jZQ=="
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(running.listener.getsockname())
        connection.sendall(
            b"GET /v1/apps/shop/exec?command=%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\nAuthorization: Bearer %s\r\n\r\n"
            % (command.encode(), key, OWNER.encode())
        )
        assert connection.recv(12) == b"HTTP/1.1 101"
        yield connection


def frame(opcode: int, payload: bytes = b"", *, last: bool = True) -> bytes:
    """Of a client, masked with zeros."""
    return bytes([last << 7 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


def test_a_few_pings_are_answered(running: Running) -> None:
    with bare_socket(running, "cat") as connection:
        connection.sendall(frame(0x9, b"here") * 20)
        heard = b""
        while heard.count(b"\x8a\x04here") < 20:
            data = connection.recv(65536)
            assert data
            heard += data


@pytest.mark.parametrize("opcode", [0x9, 0xA], ids=["pings", "pongs"])
def test_a_flood_that_is_no_message_is_cut_off(running: Running, client: Client, opcode: int) -> None:
    """The event loop would do nothing else."""
    flood = frame(opcode, bytes(125)) * 100
    with bare_socket(running, "cat") as connection, contextlib.suppress(ConnectionError):
        for _ in range(1_000):
            connection.sendall(flood)
        raise AssertionError("a hundred thousand of them were taken")
    assert client.healthz().status == "ok"


def test_a_message_of_endless_empty_pieces_is_cut_off(running: Running, client: Client) -> None:
    with bare_socket(running, "cat") as connection, contextlib.suppress(ConnectionError):
        connection.sendall(frame(0x2, last=False))
        connection.sendall(frame(0x0, last=False) * (MAX_PIECES + 1))
        while connection.recv(65536):
            pass
    assert client.healthz().status == "ok"


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
    with pytest.raises((ApiProblem, Unreachable)):
        list(stream)
    with pytest.raises(Unreachable):
        client.healthz()


def test_a_stream_with_too_long_a_command_is_refused_at_once(running: Running, client: Client) -> None:
    with pytest.raises(ApiProblem, match="at most 8000 bytes") as refused:
        open_exec(client, "shop", ["x" * 4000, "y" * 4000])
    assert (refused.value.status, refused.value.code) == (431, "head-too-large")
    assert "stdin" in refused.value.resolution
    with open_exec(client, "shop", ["x" * 4000, "y" * 3000]) as stream:
        stream.send(Record(RecordKind.STDIN_EOF))
        assert [record.kind for record in stream] == [RecordKind.EXIT]


@pytest.mark.parametrize("more", [b"X: " + b"a" * 8500 + b"\r\n", b"".join(b"X%d: a\r\n" % n for n in range(200))])
def test_a_handshake_that_cannot_be_parsed_does_not_hold_its_connection(running: Running, more: bytes) -> None:
    with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
        connection.sendall(
            b"GET /v1/apps/shop/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        )
        connection.sendall(more + b"\r\n")
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 431 ")


_CHUNKED = b"POST /v1/auth/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"GET /healthz HTTP/1.1\r\n", b"X: " + b"a" * 1000 + b"\r\n"),
        (_CHUNKED + b"0\r\n", b"X: " + b"a" * 1000 + b"\r\n"),
        (_CHUNKED + b"0\r\nX: ", b"a" * 1000),
        (_CHUNKED + b"2;x=", b"a" * 1000),
    ],
    ids=["head", "trailers", "trailer", "extension of a chunk"],
)
def test_what_is_of_no_body_and_endless_is_cut_off(running: Running, client: Client, first: bytes, more: bytes) -> None:
    with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
        connection.sendall(first)
        with contextlib.suppress(ConnectionError):
            for _ in range(100_000):
                connection.sendall(more)
            raise AssertionError("a hundred megabytes of headers were taken")
    assert client.healthz().status == "ok"


def test_trailers_are_taken_for_no_headers(running: Running) -> None:
    with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
        head = (
            f"POST /v1/apps HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OWNER}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        body = b'e\r\n{"name": "to"}\r\n0\r\nContent-Type: application/json\r\n\r\n'
        connection.sendall(head.encode() + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 "), "nothing said that it is JSON"


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
    "head",
    [
        b"POST /v1/auth/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n",
        b"POST /v1/apps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n",
    ],
    ids=["waited for", "refused before it came"],
)
def test_a_body_that_does_not_come_on_holds_no_connection(
    running: Running, client: Client, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(protocol, "BODY_S", 0.2)
    with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
        connection.sendall(head + b"Content-Length: 5000\r\n\r\n{")
        connection.settimeout(0.05)

        def sees_the_end() -> bool:
            try:
                connection.sendall(b" ")
                return not connection.recv(65536)
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        eventually(sees_the_end)
    assert client.healthz().status == "ok"


def test_a_large_body_may_take_its_time_while_it_comes_on(
    running: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)
    monkeypatch.setattr(protocol, "BODY_S", 0.2)
    monkeypatch.setattr(protocol, "BODY_BYTES", 1)
    head = f"POST /v1/apps HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OWNER}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(running.listener.getsockname(), timeout=5) as connection:
        connection.sendall(head.encode())

        def looked_at_thrice() -> bool:
            connection.sendall(b"1\r\n \r\n")
            return looks.count >= 3

        eventually(looked_at_thrice)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


class Looks:
    """How often a body was looked at that is not complete."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        look = BoundedHttp._look_at_body

        def counted(connection: BoundedHttp) -> None:
            self.count += 1
            look(connection)

        monkeypatch.setattr(BoundedHttp, "_look_at_body", counted)


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


@pytest.fixture
def crowded(running: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A server that takes two connections from an address, be it its own host's."""
    monkeypatch.setattr(Origins, "_is_free", lambda _origins, _address: False)
    running.server._server.origins = Origins(of_address=2)
    return running


def answered(running: Running) -> bool:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    connection = socket.create_connection(running.listener.getsockname(), timeout=5)
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(request)
        return connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    return False


def test_one_address_has_so_many_connections_and_no_more(crowded: Running) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(socket.create_connection(crowded.listener.getsockname(), timeout=5))
        eventually(lambda: not answered(crowded))
    eventually(lambda: answered(crowded))


def test_over_tls_a_connection_counts_before_its_handshake_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Origins, "_is_free", lambda _origins, _address: False)
    monkeypatch.setattr(server, "HANDSHAKE_S", 2.0)
    certificate, key = (authority := Authority(tmp_path, "authority").make()).issue("server", "/CN=server")
    context = ssl.create_default_context(cafile=authority.certificate)

    def is_served() -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(address, timeout=5) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as talking,
        ):
            talking.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return talking.recv(65536).startswith(b"HTTP/1.1 200 ")
        return False

    def is_shut_out() -> bool:
        for _ in range(2):
            held.enter_context(socket.create_connection(address, timeout=5))
        return not is_served()

    with Running(tmp_path / "spool", tls=Tls(certificate, key)) as running, contextlib.ExitStack() as held:
        address = running.listener.getsockname()
        running.server._server.origins = Origins(of_address=2)
        assert is_served()
        eventually(is_shut_out)
        eventually(is_served)
        eventually(lambda: not running.server._server.origins._open)


def test_a_socket_is_a_connection_until_it_ends(crowded: Running) -> None:
    with Client(crowded.url, OWNER) as one, open_exec(one, "shop", ["cat"]) as stream:
        with socket.create_connection(crowded.listener.getsockname(), timeout=5):
            eventually(lambda: not answered(crowded))
        stream.send(Record(RecordKind.STDIN_EOF))
        list(stream)
    eventually(lambda: answered(crowded))
    eventually(lambda: not crowded.server._server.origins._open)


def test_sockets_are_of_what_an_organization_may_have_open(running: Running, client: Client) -> None:
    running.world.app.state.context.shares = Shares(of_organization=1)
    with open_exec(client, "shop", ["cat"]) as stream:
        with pytest.raises(ApiProblem) as refused:
            open_exec(client, "shop", ["cat"])
        with pytest.raises(ApiProblem, match="are open"):
            client.exec_command("shop", ExecBody(command=["cat"]))
        stream.send(Record(RecordKind.STDIN_EOF))
        list(stream)
    assert (refused.value.status, refused.value.code) == (429, "too-many-open")
    assert client.exec_command("shop", ExecBody(command=["cat"])).exit_code == 3
