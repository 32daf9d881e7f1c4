"""The client: generated from the document, light, and honest about what went wrong."""

from __future__ import annotations

import json
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shellwego.client.generated import AppCreate, AppPatch, Client, ConfigBody, EnvBody, ProcessBody, ScaleBody
from shellwego.client.streams import events
from shellwego.client.transport import ApiProblem, Transport, Unreachable, encode, target
from tests.api.api_world import DOCUMENT

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"pydantic", "aiohttp", "fastapi", "starlette", "sqlalchemy", "websockets", "uvicorn", "plasmavmc"}


def test_the_committed_client_is_what_the_document_says() -> None:
    script = runpy.run_path(str(ROOT / "scripts/generate-client"))
    made = script["formatted"](script["generate"](DOCUMENT))
    assert made == script["TARGET"].read_text(), "run scripts/generate-client and commit its result"


def test_the_client_imports_little() -> None:
    code = (
        "import json, sys, shellwego.client.generated, shellwego.client.uploads; print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    imported = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not imported & FORBIDDEN
    ours = {name for name in json.loads(done.stdout) if name.startswith("shellwego.")}
    assert not {name for name in ours if name.split(".")[1] not in ("client", "wire")}


def test_what_is_left_out_of_a_body_is_not_sent() -> None:
    assert json.loads(encode(AppCreate(name="shop"))) == {"name": "shop"}
    assert json.loads(encode(EnvBody(env={"A": None, "B": "1"}))) == {"env": {"A": None, "B": "1"}}
    assert json.loads(encode(ScaleBody(counts={"web": 0}))) == {"counts": {"web": 0}}
    body = AppPatch(config=ConfigBody(processes={"web": ProcessBody(command=[])}))
    assert json.loads(encode(body)) == {"config": {"processes": {"web": {"command": []}}}}


def test_values_in_paths_and_queries_are_quoted() -> None:
    assert target("/x", {"a": "b c&d=e", "t": True, "n": None, "z": 0}) == "/x?a=b+c%26d%3De&t=true&z=0"


@pytest.mark.parametrize("url", ["", "ftp://x", "localhost:7080", "http://"])
def test_what_is_no_url_of_an_api_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL"):
        Transport(url)


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Serves raw answers, one for each connection or request, on loopback; gives its URL."""
    listeners: list[socket.socket] = []

    def start(*answers: bytes | None) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=_serve, args=(listener, list(answers)), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


def _serve(listener: socket.socket, answers: list[bytes | None]) -> None:
    while answers:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            while answers and connection.recv(65536):
                answer = answers.pop(0)
                if answer is None:
                    break
                connection.sendall(answer)


def http(status: int, body: bytes, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


HEALTH = http(200, b'{"status":"ok","new":"field of a newer server"}')


def test_a_connection_is_used_again_and_replaced_when_it_went_stale(server: Callable[..., str]) -> None:
    with Client(server(HEALTH, HEALTH, None, HEALTH)) as client:
        for _ in range(3):
            assert client.healthz().status == "ok"


def test_a_write_is_never_sent_twice_without_a_key(server: Callable[..., str]) -> None:
    with Client(server(None, HEALTH)) as client, pytest.raises(Unreachable):
        client.create_app(AppCreate(name="x"))


def test_a_problem_is_an_error_with_its_parts(server: Callable[..., str]) -> None:
    body = json.dumps(
        {
            "title": "Conflict",
            "status": 409,
            "detail": "taken",
            "code": "app-exists",
            "trace_id": "abc",
            "resolution": "rename it",
            "errors": [{"field": "name", "code": "taken", "message": "in use"}],
        }
    ).encode()
    with Client(server(http(409, body))) as client, pytest.raises(ApiProblem) as error:
        client.healthz()
    problem = error.value
    assert (problem.status, problem.code, problem.trace_id, str(problem)) == (409, "app-exists", "abc", "taken")
    assert (problem.resolution, problem.errors[0].field) == ("rename it", "name")


def test_another_servers_answer_is_not_taken_for_ours(server: Callable[..., str]) -> None:
    with Client(server(http(200, b"<html>"))) as client, pytest.raises(Unreachable, match="not one of this API"):
        client.healthz()
    with Client(server(http(502, b"<html>bad gateway"))) as client, pytest.raises(ApiProblem) as error:
        client.healthz()
    assert (error.value.status, error.value.code) == (502, "unknown")
    with Client(server(b"SSH-2.0-OpenSSH\r\n")) as client, pytest.raises(Unreachable):
        client.healthz()


def test_no_server_is_unreachable_and_says_where() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(Unreachable, match=f"127.0.0.1:{port}"):
        client.create_app(AppCreate(name="x"))


def test_a_unix_socket_is_spoken_to(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threading.Thread(target=_serve, args=(listener, [HEALTH]), daemon=True).start()
    with listener, Client(f"unix:{path}") as client:
        assert client.healthz().status == "ok"


def test_events_are_cut_from_lines() -> None:
    text = b": comment\n\nevent: a\ndata: {\ndata: }\nid: 7\n\ndata: x\r\n\r\nevent: b\n\ndata: unfinished\n"
    found = [(event.event, event.data, event.id) for event in events(text.splitlines(keepends=True))]
    assert found == [("a", "{\n}", "7"), ("message", "x", "7")]


def test_an_error_event_ends_the_stream_with_its_problem() -> None:
    lines = [b"event: error\n", b'data: {"code":"unauthenticated","detail":"revoked"}\n', b"\n"]
    with pytest.raises(ApiProblem) as error:
        list(events(lines))
    assert (error.value.code, str(error.value)) == ("unauthenticated", "revoked")
