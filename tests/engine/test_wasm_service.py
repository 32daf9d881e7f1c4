"""A module that serves HTTP, in this process: what it is asked, what comes back, and how little it can do to others."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from plasmavmc.hypervisor.wasm import service
from plasmavmc.hypervisor.wasm.control import HTTP_BACKLOG, LISTENER, MODULE, Assign
from plasmavmc.hypervisor.wasm.engine import Sandbox
from plasmavmc.hypervisor.wasm.guest import Guest, Told
from plasmavmc.hypervisor.wasm.job import Job
from plasmavmc.hypervisor.wasm.service import MAX_WAITING, Service, share_of
from plasmavmc.types import MIB, LogStream
from tests.contract import wasm_modules as commands
from tests.contract import wasm_services as services

PATIENCE_S = 60.0
GET = b"GET / HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n"


class Heard(Guest):
    """A guest side that nobody is attached to; notes what it is told."""

    def __init__(self, make: Callable[[Guest], Service]) -> None:
        self.log = bytearray()
        self.news = asyncio.Event()
        self.is_ready = False
        self.failure: tuple[str, str] | None = None
        self.code: int | None = None
        super().__init__(make)

    def write(self, stream: LogStream, data: bytes) -> None:
        assert stream is LogStream.STDERR
        self.log += data
        self.news.set()

    def ready(self) -> None:
        self.is_ready = True
        self.news.set()

    def failed(self, code: str, message: str) -> None:
        self.failure = code, message
        self.news.set()

    def exited(self, code: int, *, oom: bool = False) -> None:
        self.code = code
        self.news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self.news.clear()
                await self.news.wait()


class World:
    """A service of one module, and the way to ask it."""

    def __init__(self, directory: Path, module: bytes, *, memory_bytes: int, request_s: float) -> None:
        self.path = directory / "http.sock"
        self.service: Service | None = None
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(HTTP_BACKLOG)
        content = os.memfd_create("module")
        os.write(content, module)
        ours, self._theirs = socket.socketpair()
        fds = {MODULE: content, LISTENER: listener.detach()}
        job = Job(Assign(memory_bytes, tuple(fds)), fds, ours, Sandbox(), ThreadPoolExecutor(1, "load"))
        self._ours, self._module = ours, content

        def make(guest: Guest) -> Service:
            self.service = Service(guest, job, request_s=request_s)
            return self.service

        self.guest = Heard(make)

    async def ask(self, request: bytes = GET) -> bytes:
        """Send bytes, and take what comes until the connection ends."""
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(str(self.path))
            writer.write(request)
            answer = await reader.read()
            writer.close()
        return answer

    async def content(self, request: bytes = GET) -> bytes:
        """The content of an answer."""
        return content_of(await self.ask(request))

    def close(self) -> None:
        for end in (self._ours, self._theirs):
            end.close()
        os.close(self._module)


Serve = Callable[..., "asyncio.Future[World]"]


def content_of(answer: bytes) -> bytes:
    """Without head, and without chunks' sizes."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    content = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        content += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return content


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The worker's own directory."""
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.chdir(own)
    return own


@asynccontextmanager
async def serving(
    directory: Path, module: bytes, *, memory_bytes: int = 64 * MIB, request_s: float = PATIENCE_S
) -> AsyncIterator[World]:
    world = World(directory.parent, module, memory_bytes=memory_bytes, request_s=request_s)
    assert world.service is not None
    world.service.configure(Told(argv=["/module.wasm"], env={"COLOUR": "blue", "PORT": "8080"}))
    try:
        await world.guest.until(lambda: world.guest.is_ready or world.guest.failure is not None)
        yield world
        world.service.stop(PATIENCE_S)
        if world.guest.is_ready:
            await world.guest.until(lambda: world.guest.code is not None)
        for pool in (world.service._threads, world.service._job.thread):
            await asyncio.to_thread(pool.shutdown)
    finally:
        world.close()


async def test_an_answer_has_the_module_s_status_headers_and_content(directory: Path) -> None:
    told = r"Status: 418 Teapot\nContent-Type: text/x\r\nSet-Cookie: a=1\nSet-Cookie: b=2\n\nshort\nand stout"
    async with serving(directory, services.says(told)) as world:
        answer = await world.ask()
    head, _, _ = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 418 Teapot\r\n")
    assert head.count(b"Set-Cookie: ") == 2
    assert content_of(answer) == b"short\nand stout"


async def test_one_connection_carries_many_requests_and_each_has_an_instance_of_its_own(directory: Path) -> None:
    once = services.service(
        """(if (i32.load (i32.const 2048)) (then unreachable))
        (i32.store (i32.const 2048) (i32.const 1))
        (drop (call $say (i32.const 1) (i32.const 1024) (i32.const 27)))""",
        data=r"Content-Type: text/x\n\nhello",
    )
    async with serving(directory, once) as world, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_unix_connection(str(world.path))
        for _ in range(5):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.readuntil(b"0\r\n\r\n")).count(b"hello") == 1
        writer.close()
    assert world.guest.code == 0


async def test_a_body_comes_on_stdin_whether_it_has_a_length_or_chunks(directory: Path) -> None:
    body = bytes(range(256)) * 2048
    async with serving(directory, services.ECHO) as world:
        sized = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert await world.content(sized + body) == body
        chunks = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert await world.content(chunks + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n") == b"abcdefg"
        assert await world.content() == b""


async def test_a_module_knows_the_request_and_its_own_variables_by_name(directory: Path) -> None:
    request = (
        b"PUT /a%20b/?q=%20 HTTP/1.1\r\nHost: app.example:81\r\nConnection: close\r\nContent-Type: text/x\r\n"
        b"Transfer-Encoding: chunked\r\nX-Forwarded-For: 10.0.0.9, 10.0.0.1\r\nProxy: evil\r\nX_Under: evil\r\n"
        b"Cookie: a=1\r\nCookie: b=2\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    )
    async with serving(directory, services.VARIABLES) as world:
        told = dict(line.split("=", 1) for line in (await world.content(request)).decode().split("\0") if line)
    assert told == {
        "COLOUR": "blue",
        "PORT": "8080",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "PATH_INFO": "/a b/",
        "QUERY_STRING": "q=%20",
        "REMOTE_ADDR": "10.0.0.1",
        "REQUEST_METHOD": "PUT",
        "REQUEST_URI": "/a%20b/?q=%20",
        "SCRIPT_NAME": "",
        "SERVER_NAME": "app.example",
        "SERVER_PORT": "81",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "plasmavmc",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "2",
        "HTTP_HOST": "app.example:81",
        "HTTP_X_FORWARDED_FOR": "10.0.0.9, 10.0.0.1",
        "HTTP_COOKIE": "a=1; b=2",
    }


async def test_head_gets_the_headers_alone(directory: Path) -> None:
    async with serving(directory, services.says(r"Content-Type: text/x\nContent-Length: 5\n\nhello")) as world:
        answer = await world.ask(GET.replace(b"GET", b"HEAD"))
    assert status_of(answer) == 200
    assert b"Content-Length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /../etc HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"100000\r\n%s\r\n" % bytes(MIB) * 9,
            413,
        ),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405),
    ],
    ids=["no HTTP", "no host", "path out", "long", "two lengths", "large by its word", "large by chunks", "tunnel"],
)
async def test_a_bad_request_is_refused_and_nothing_runs(directory: Path, request_bytes: bytes, status: int) -> None:
    async with serving(directory, services.COMPLAINS) as world:
        assert status_of(await world.ask(request_bytes)) == status
        assert world.guest.log == b""


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (services.says(r"hello\n"), "printed no headers"),
        (services.says(r"Content-Type: a\nTransfer-Encoding: chunked\n\n0\n"), "Transfer-Encoding"),
        (services.says(r"Content-Type: a\nStatus: 101 Switching\n\n"), "status"),
        (services.says(r"Content-Type: a\rX: b\n\n"), "no header"),
        (services.says(r"X-Only: a\n\n"), "none of Content-Type"),
        (services.service("(drop (call $say (i32.const 1) (i32.const 1024) (i32.const 120000)))"), "longer"),
        (commands.TRAP, "trapped"),
        (commands.GROWS, "out of memory"),
    ],
    ids=["no head", "framing", "informational", "control", "no field of CGI", "headers without end", "trap", "memory"],
)
async def test_an_answer_that_is_none_is_a_bad_gateway_with_the_reason_in_the_log(
    directory: Path, module: bytes, told: str
) -> None:
    async with serving(directory, module) as world:
        answer = await world.ask()
        assert (status_of(answer), content_of(answer)) == (502, b"502 Bad Gateway\n")
        assert world.guest.log.startswith(b"GET /: 502: ")
        assert told in world.guest.log.decode()


@pytest.mark.parametrize("module", [commands.LOOP, services.SLEEPS], ids=["busy", "asleep"])
async def test_a_module_that_does_not_answer_is_interrupted_and_its_place_is_free_again(
    directory: Path, module: bytes
) -> None:
    async with serving(directory, module, memory_bytes=32 * MIB, request_s=0.3) as world:
        assert share_of(32 * MIB) == (1, 32 * MIB)
        assert [status_of(await world.ask()) for _ in range(3)] == [504] * 3
        assert world.guest.log.count(b"GET /: 504: no answer within 0.3 s\n") == 3


@pytest.mark.parametrize("module", [services.FALTERS, services.SHORT, services.LONG], ids=["trap", "short", "long"])
async def test_an_answer_that_cannot_be_ended_as_it_began_is_cut(directory: Path, module: bytes) -> None:
    async with serving(directory, module) as world:
        try:
            answer = await world.ask()
        except ConnectionError:
            answer = b""
        assert not answer.endswith(b"0\r\n\r\n")
        assert b"Content-Length: 3\r\n" not in answer or content_of(answer) == b""
        assert b"cut off" in world.guest.log or answer.startswith(b"HTTP/1.1 502")


async def test_an_exit_code_does_not_take_an_answer_back(directory: Path) -> None:
    async with serving(directory, services.HALTS) as world:
        assert await world.content() == b"done"


async def test_a_long_answer_goes_as_fast_as_its_client_takes_it_and_ends_with_it(directory: Path) -> None:
    async with serving(directory, services.ENDLESS, memory_bytes=32 * MIB) as world, asyncio.timeout(PATIENCE_S):
        for _ in range(2):
            reader, writer = await asyncio.open_unix_connection(str(world.path))
            writer.write(GET)
            taken = 0
            while taken < 4 * MIB:
                taken += len(await reader.read(65536))
            writer.transport.abort()


async def test_requests_beyond_what_may_wait_are_told_so_and_the_others_are_answered(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_WAITING", 1)
    slow = services.service(
        "(call $sleep (i64.const 2)) (drop (call $say (i32.const 1) (i32.const 1024) (i32.const 26)))",
        data=r"Content-Type: text/x\n\ndone",
    )
    async with serving(directory, slow, memory_bytes=32 * MIB) as world:
        asked = await asyncio.gather(*(world.ask() for _ in range(8)))
    statuses = [status_of(answer) for answer in asked]
    assert set(statuses) == {200, 503}
    assert all(b"Retry-After: 1\r\n" in answer for answer in asked if status_of(answer) == 503)


async def test_more_requests_than_instances_are_all_answered_in_their_turn(directory: Path) -> None:
    async with serving(directory, services.answers("hello"), memory_bytes=64 * MIB) as world:
        asked = await asyncio.gather(*(world.ask() for _ in range(MAX_WAITING)))
    assert {status_of(answer) for answer in asked} == {200}


async def test_what_a_module_complains_of_is_in_its_log(directory: Path) -> None:
    async with serving(directory, services.COMPLAINS) as world:
        await world.ask()
        await world.guest.until(lambda: bytes(world.guest.log) == b"Content-")


async def test_a_request_under_way_is_answered_while_the_service_stops(directory: Path) -> None:
    slow = services.service(
        """(drop (call $say (i32.const 2) (i32.const 1024) (i32.const 1)))
        (call $sleep (i64.const 1))
        (drop (call $say (i32.const 1) (i32.const 1024) (i32.const 26)))""",
        data=r"Content-Type: text/x\n\ndone",
    )
    async with serving(directory, slow) as world:
        assert world.service is not None
        asked = asyncio.create_task(world.content())
        await world.guest.until(lambda: bytes(world.guest.log) == b"C")
        world.service.stop(PATIENCE_S)
        assert await asked == b"done"
        await world.guest.until(lambda: world.guest.code == 0)


@pytest.mark.parametrize(
    ("module", "code", "told"),
    [
        (commands.GREEDY, "memory-limit", "each request has 32 MiB"),
        (commands.UNKNOWN_IMPORT, "not-executable", "env::socket"),
        (commands.LIBRARY, "not-executable", "_start"),
    ],
)
async def test_a_module_that_no_request_could_run_fails_at_its_start(
    directory: Path, module: bytes, code: str, told: str
) -> None:
    async with serving(directory, module) as world:
        assert world.guest.failure is not None
        assert world.guest.failure[0] == code
        assert told in world.guest.failure[1]
