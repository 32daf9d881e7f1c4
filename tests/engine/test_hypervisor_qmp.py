"""The monitor's client against a peer that answers, refuses, chatters, stalls, lies and goes away."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from plasmavmc.errors import HostError, UnavailableError
from plasmavmc.hypervisor.qemu.qmp import QmpSession, qmp_session

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": ["oob"]}}
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def say(writer: asyncio.StreamWriter, message: object) -> None:
    writer.write(json.dumps(message).encode() + b"\r\n")


async def negotiate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    say(writer, GREETING)
    assert json.loads(await reader.readline()) == {"execute": "qmp_capabilities"}
    say(writer, {"return": {}})


@asynccontextmanager
async def monitor(path: Path, script: Script) -> AsyncIterator[Path]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield path
    finally:
        server.close()


async def test_a_command_returns_what_the_monitor_answers(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await negotiate(reader, writer)
        assert json.loads(await reader.readline()) == {"execute": "query-status", "arguments": {"a": 1}}
        say(writer, {"return": {"status": "running"}})

    async with monitor(tmp_path / "q", script) as path, qmp_session(path) as session:
        assert await session.execute("query-status", {"a": 1}) == {"status": "running"}


async def test_events_between_command_and_answer_are_skipped(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await negotiate(reader, writer)
        await reader.readline()
        for _ in range(3):
            say(writer, {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}})
        say(writer, {"return": {}})

    async with monitor(tmp_path / "q", script) as path, qmp_session(path) as session:
        assert await session.execute("cont") == {}


async def test_a_refused_command_tells_what_qemu_said(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await negotiate(reader, writer)
        await reader.readline()
        say(writer, {"error": {"class": "GenericError", "desc": "no such device"}})

    async with monitor(tmp_path / "q", script) as path, qmp_session(path) as session:
        with pytest.raises(HostError, match="no such device") as refused:
            await session.execute("device_del", {"id": "x"})
        assert refused.value.code == "qmp-refused"


async def test_a_monitor_that_stalls_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await negotiate(reader, writer)
        await reader.read()

    async with monitor(tmp_path / "q", script) as path, qmp_session(path) as session:
        with pytest.raises(UnavailableError, match="no answer to cont"):
            await session.execute("cont", deadline_s=0.05)


async def test_a_monitor_that_never_greets_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with monitor(tmp_path / "q", script) as path:
        with pytest.raises(UnavailableError, match=r"within 0\.05 s"):
            await QmpSession.open(path, 0.05)


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"\n",
        b"not json\r\n",
        b"[1]\r\n",
        b"x" * 300_000,
        b"\xff\xfe\r\n",
        b"9" * 100_000 + b"\r\n",
        b"[" * 200_000 + b"\r\n",
    ],
)
async def test_a_monitor_that_speaks_something_else_is_an_error_and_not_a_crash(tmp_path: Path, noise: bytes) -> None:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(noise)

    async with monitor(tmp_path / "q", script) as path:
        with pytest.raises(UnavailableError) as silent:
            await QmpSession.open(path, 2.0)
        assert silent.value.code == "qmp-silent"


async def test_nobody_at_the_path_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be reached: No such file"):
        await QmpSession.open(tmp_path / "q", 1.0)


async def test_quit_is_content_with_a_monitor_that_goes_away_without_an_answer(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await negotiate(reader, writer)
        await reader.readline()

    async with monitor(tmp_path / "q", script) as path, qmp_session(path) as session:
        await session.quit(2.0)


async def test_a_descriptor_goes_with_its_command(tmp_path: Path) -> None:
    """QEMU's `getfd` takes it from the message that holds the command."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "q"))
        listener.listen()

        def serve() -> tuple[object, bytes]:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(json.dumps(GREETING).encode() + b"\n")
                peer.recv(4096)
                peer.sendall(b'{"return": {}}\n')
                line, descriptors, _, _ = socket.recv_fds(peer, 4096, 4)
                (descriptor,) = descriptors
                with os.fdopen(descriptor, "rb") as file:
                    content = file.read()
                peer.sendall(b'{"return": {}}\n')
                return json.loads(line), content

        serving = loop.run_in_executor(None, serve)
        (tmp_path / "state").write_bytes(b"a state")
        with (tmp_path / "state").open("rb") as state:
            async with qmp_session(tmp_path / "q") as session:
                await session.execute("getfd", {"fdname": "state"}, descriptor=state.fileno())
        assert await serving == ({"execute": "getfd", "arguments": {"fdname": "state"}}, b"a state")
