"""Checks tried for real, against servers on loopback that are friendly, broken or hostile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.agent.probes import MAX_LINE, HostProber, Target, request_bytes, verdict_on
from shellwego.core.apps import Check, CheckKind
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.ports.engine import VmOrder, VmPhase
from tests.agent.agent_world import workload

pytestmark = pytest.mark.real

TARGET = Target(vm_id="vm_1", instance_id="ins_1", address="127.0.0.1")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def prober() -> HostProber:
    return HostProber(MemoryEngine(SystemClock()))


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def answering(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return serve


async def free_port() -> int:
    async with serving(answering(b"")) as port:
        return port


def http(port: int, **changes: object) -> Check:
    return replace(Check(kind=CheckKind.HTTP, port=port, path="/health", timeout_s=2.0), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 200\r\n\r\n", ""),
        (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"HTTP/1.1 500 Oops\r\n\r\n", "status 500"),
        (b"HTTP/1.1 999 Odd\r\n\r\n", "status 999"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 20x OK\r\n", "not HTTP"),
        (b"", "not HTTP"),
        (b"A" * (MAX_LINE * 50), "not HTTP"),
    ],
)
async def test_an_http_check_judges_the_status_line(prober: HostProber, answer: bytes, reason: str) -> None:
    async with serving(answering(answer)) as port:
        told = await prober.probe(TARGET, http(port), 1.0)
    assert reason in told
    assert bool(told) == bool(reason)


async def test_a_server_that_dribbles_is_given_up_at_the_time_out(prober: HostProber) -> None:
    async def dribble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(dribble) as port:
        before = time.monotonic()
        told = await prober.probe(TARGET, http(port, timeout_s=0.2), 1.0)
        assert "no answer within 0.2 s" in told
        assert time.monotonic() - before < 2


async def test_a_server_that_floods_is_not_listened_to(prober: HostProber) -> None:
    sent = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with serving(flood) as port:
        assert await prober.probe(TARGET, http(port), 1.0) == ""
    assert sent < 64 * 1024 * 1024


async def test_a_line_without_an_end_is_judged_by_its_beginning(prober: HostProber) -> None:
    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"A" * 1000)
            await writer.drain()

    async with serving(flood) as port:
        assert "not HTTP" in await prober.probe(TARGET, http(port), 1.0)


async def test_a_tcp_check_passes_where_somebody_listens(prober: HostProber) -> None:
    async with serving(answering(b"")) as port:
        assert await prober.probe(TARGET, Check(kind=CheckKind.TCP, port=port), 1.0) == ""


async def test_checks_reach_a_vm_at_its_socket_whatever_the_port(prober: HostProber, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    asked = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            asked.set_result(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    at_socket = replace(TARGET, address=f"unix:{path}")
    server = await asyncio.start_unix_server(handle, str(path))
    assert await prober.probe(at_socket, Check(kind=CheckKind.TCP, port=1), 2.0) == ""
    assert await prober.probe(at_socket, http(8080), 2.0) == ""
    assert b"\r\nHost: localhost:8080\r\n" in await asked
    server.close()
    path.unlink()
    assert "no such file" in await prober.probe(at_socket, http(8080), 2.0)


@pytest.mark.parametrize("kind", [CheckKind.TCP, CheckKind.HTTP])
async def test_a_closed_port_is_told_as_refused(prober: HostProber, kind: CheckKind) -> None:
    port = await free_port()
    assert "refused" in await prober.probe(TARGET, Check(kind=kind, port=port), 1.0)


async def test_a_vm_without_an_address_fails_its_check(prober: HostProber) -> None:
    nowhere = replace(TARGET, address="")
    assert "no address" in await prober.probe(nowhere, Check(kind=CheckKind.TCP, port=80), 1.0)


def test_a_path_cannot_add_headers_or_requests() -> None:
    request = request_bytes("10.0.0.1", http(80, path="/a b\r\nX-Evil: 1\r\n\r\nGET /ü?q=1%20&r"))
    head = request.decode("ascii").split("\r\n")
    assert head[0] == "GET /a%20b%0D%0AX-Evil:%201%0D%0A%0D%0AGET%20/%C3%BC?q=1%20&r HTTP/1.1"
    assert [line.partition(":")[0] for line in head[1:]] == ["Host", "User-Agent", "Connection", "", ""]


def test_a_path_without_its_slash_gets_one() -> None:
    assert request_bytes("10.0.0.1", http(80, path="health")).startswith(b"GET /health HTTP/1.1\r\n")


def test_the_verdict_names_port_and_path() -> None:
    assert verdict_on(http(8080), b"HTTP/1.1 503 x\r\n") == "http check on port 8080, path /health: status 503"


async def running_vm() -> MemoryEngine:
    engine = MemoryEngine(SystemClock(), boot_s=0.001)
    await engine.run(VmOrder(vm_id="vm_1", instance_id="ins_1", attempt=1, workload=workload()))
    async with asyncio.timeout(5):
        while (await engine.observe())[0].phase is not VmPhase.RUNNING:
            await engine.changed()
    return engine


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("exit", "0"), ""),
        (("exit", "7"), "exit code 7"),
        (("pg_isready",), "exit code 127, pg_isready was not found in the image"),
    ],
)
async def test_an_exec_check_passes_with_exit_code_0_only(command: tuple[str, ...], reason: str) -> None:
    prober = HostProber(await running_vm())
    told = await prober.probe(TARGET, Check(kind=CheckKind.EXEC, command=command), 1.0)
    assert reason in told
    assert bool(told) == bool(reason)


async def test_an_exec_check_that_hangs_is_given_up() -> None:
    prober = HostProber(await running_vm())
    told = await prober.probe(TARGET, Check(kind=CheckKind.EXEC, command=("cat",), timeout_s=0.05), 1.0)
    assert "no answer" in told


async def test_an_exec_check_on_a_vm_that_does_not_run_fails_with_the_reason(prober: HostProber) -> None:
    told = await prober.probe(TARGET, Check(kind=CheckKind.EXEC, command=("true",)), 1.0)
    assert "no VM" in told
