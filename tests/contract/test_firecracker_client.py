"""Fake tier: our client and our way to the guest, against the stand-in and its faults, and against peers that lie."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from plasmavmc.errors import HostError, UnavailableError
from plasmavmc.hypervisor.firecracker import client as client_module
from plasmavmc.hypervisor.firecracker.client import Phase, firecracker_client
from plasmavmc.hypervisor.firecracker.requests import pause_request
from plasmavmc.hypervisor.firecracker.snapshots import keep
from plasmavmc.hypervisor.firecracker.vsock import connect_vsock
from tests.contract.fake_firecracker import VARIABLE
from tests.contract.firecracker_driver import VSOCK, Driven, a_driven_life, boot, driven, prepare

ROOT = Path(__file__).resolve().parents[2]
FAKE = (sys.executable, "-m", "tests.contract.fake_firecracker")
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def environment(**behaviour: object) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], VARIABLE: json.dumps(behaviour)}


@asynccontextmanager
async def faked(directory: Path, **behaviour: object) -> AsyncIterator[Driven]:
    prepare(directory)
    async with driven(FAKE, directory, environment(**behaviour)) as vmm:
        yield vmm


@asynccontextmanager
async def listening(path: Path, peer: Peer) -> AsyncIterator[Path]:
    server = await asyncio.start_unix_server(peer, str(path))
    try:
        yield path
    finally:
        server.close()


def says(data: bytes) -> Peer:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1000):
            writer.write(data)
        writer.close()

    return peer


async def test_a_vm_is_led_through_its_life(tmp_path: Path) -> None:
    await a_driven_life(FAKE, tmp_path, environment())


async def test_a_vmm_whose_socket_is_there_before_it_listens_is_waited_for(tmp_path: Path) -> None:
    async with faked(tmp_path, listen_after_s=0.5) as vmm, vmm.client() as client:
        assert (await client.info()).id == "one"


async def test_a_vmm_that_never_listens_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as silent:
        async with firecracker_client(tmp_path / "none", deadline_s=0.05):
            pass
    assert silent.value.code == "firecracker-silent"


async def test_a_vmm_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    async with asyncio.timeout(2.0):
        with pytest.raises(UnavailableError):
            async with firecracker_client(tmp_path / "none", deadline_s=60.0, ended=lambda: True):
                pass


async def test_a_vmm_with_too_many_connections_may_be_asked_again(tmp_path: Path) -> None:
    async with faked(tmp_path) as vmm, vmm.client() as first:
        await first.info()
        held = [await asyncio.open_unix_connection(str(vmm.socket("api.sock"))) for _ in range(9)]
        with pytest.raises(UnavailableError) as busy:
            async with vmm.client() as eleventh:
                await eleventh.info()
        assert busy.value.code in {"firecracker-busy", "firecracker-silent"}
        for _, writer in held:
            writer.close()


async def test_a_pause_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client_module.SLOW_CALL_DEADLINE_S >= 35.0
    monkeypatch.setattr(client_module, "SLOW_CALL_DEADLINE_S", 0.2)
    async with faked(tmp_path, slow={"/vm": 30.0}) as vmm, vmm.client(Phase.RUNNING) as client:
        with pytest.raises(UnavailableError) as silent:
            await client.perform(pause_request())
    assert silent.value.code == "firecracker-silent"


async def test_a_vmm_killed_amid_a_snapshot_is_a_vmm_that_went_away(tmp_path: Path) -> None:
    async with faked(tmp_path, killed_at="/snapshot/create") as vmm, vmm.client() as client:
        await boot(client)
        with pytest.raises(UnavailableError) as silent:
            await keep(client, "state", "memory")
        assert silent.value.code == "firecracker-silent"
        assert await vmm.ended(5.0)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "firecracker-silent"),
        (b"\xff\xfe nonsense\r\n\r\n", "firecracker-silent"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "firecracker-silent"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b" " * 1_000_000, "firecracker-silent"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999999999\r\n\r\n", "firecracker-silent"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\nContent-Length: 0\r\n\r\n", "firecracker-silent"),
    ],
)
async def test_a_peer_that_is_no_vmm_is_an_error_and_no_more(tmp_path: Path, answer: bytes, code: str) -> None:
    async with listening(tmp_path / "api.sock", says(answer)) as path, firecracker_client(path) as client:
        with pytest.raises(UnavailableError) as refused:
            await client.info()
    assert refused.value.code == code


@pytest.mark.parametrize("status", [b"400 Bad Request", b"413 Too Large", b"500 Oops"])
async def test_a_body_that_is_no_json_is_kept_for_people(tmp_path: Path, status: bytes) -> None:
    answer = b"HTTP/1.1 " + status + b'\r\nContent-Length: 17\r\n\r\n{"error":"a\nb"}  '
    async with (
        listening(tmp_path / "api.sock", says(answer)) as path,
        firecracker_client(path, phase=Phase.RUNNING) as client,
    ):
        with pytest.raises(HostError) as refused:
            await client.perform(pause_request())
    assert refused.value.code == "firecracker-protocol"
    assert "error" in refused.value.details


# The way to the guest


async def test_a_guest_without_a_driver_answers_nothing_and_is_given_up(tmp_path: Path) -> None:
    async with faked(tmp_path) as vmm:
        async with vmm.client() as client:
            await boot(client)
        with pytest.raises(UnavailableError) as silent:
            await connect_vsock(vmm.socket(VSOCK), 1024, deadline_s=0.3, attempt_s=0.1)
    assert "driver" in silent.value.details


async def test_a_guest_whose_vmm_ended_is_not_waited_for(tmp_path: Path) -> None:
    async with asyncio.timeout(2.0):
        with pytest.raises(UnavailableError):
            await connect_vsock(tmp_path / "none", 1024, deadline_s=60.0, ended=lambda: True)


async def test_a_guest_in_which_nothing_listens_is_given_up(tmp_path: Path) -> None:
    async with faked(tmp_path, refuses=True) as vmm:
        async with vmm.client() as client:
            await boot(client)
        with pytest.raises(UnavailableError) as silent:
            await connect_vsock(vmm.socket(VSOCK), 1024, deadline_s=0.3)
    assert "listens" in silent.value.details


async def test_what_the_guest_says_at_once_is_not_lost_with_the_answer(tmp_path: Path) -> None:
    async with listening(tmp_path / "v", says(b"OK 1073741824\nhello")) as path:
        reader, writer = await connect_vsock(path, 1024, deadline_s=5.0)
        assert await reader.read() == b"hello"
        writer.close()


async def test_a_guest_that_comes_up_late_is_reached(tmp_path: Path) -> None:
    answers = iter((b"", b"", b"OK 7\n"))

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"CONNECT 1024\n"
        writer.write(next(answers))
        writer.close()

    async with listening(tmp_path / "v", peer) as path:
        _, writer = await connect_vsock(path, 1024, deadline_s=5.0)
        writer.close()


@pytest.mark.parametrize("said", [b"OK\n", b"OK -1\n", b"ok 1\n", b"x" * 1000, b"OK 1", b"OK 99999999999\n"])
async def test_another_answer_than_the_protocols_is_none(tmp_path: Path, said: bytes) -> None:
    async with listening(tmp_path / "v", says(said)) as path:
        with pytest.raises(UnavailableError) as silent:
            await connect_vsock(path, 1024, deadline_s=0.1)
    assert silent.value.code == "vsock-silent"
