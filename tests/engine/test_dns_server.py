"""The resolver on real sockets, in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from plasmavmc.network.dns.__main__ import Files
from plasmavmc.network.dns.forward import Forwarder
from plasmavmc.network.dns.names import (
    Askers,
    Names,
    NetworkNames,
    read_names,
    write_askers,
    write_names,
)
from plasmavmc.network.dns.probing import answers
from plasmavmc.network.dns.server import DnsServer
from tests.engine.dns_messages import NAMES, question, read

REFUSED, NXDOMAIN = 5, 3
LOCAL = Askers(networks={"127.0.0.1": "net_shop"})
LIMIT = 16


@dataclass
class Running:
    files: Files
    directory: Path
    port: int

    async def ask(self, message: bytes) -> bytes:
        return await asyncio.to_thread(self._ask, message)

    def _ask(self, message: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.connect(("127.0.0.1", self.port))
            asking.send(message)
            return asking.recv(4096)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    write_names(tmp_path, NAMES)
    write_askers(tmp_path, LOCAL)
    udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
    udp.bind(("127.0.0.1", 0))
    tcp.bind(udp.getsockname())
    files = Files(tmp_path, tmp_path)
    files.look()
    server = DnsServer(udp, tcp, files.resolver, Forwarder(tuple, asyncio.get_running_loop().time))
    await server.open()
    yield Running(files, tmp_path, udp.getsockname()[1])
    await server.close()


async def test_questions_on_one_connection_are_answered_all_even_where_it_is_closed_behind_them(
    running: Running,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for number in range(40):
        message = question("web.internal", id_=number)
        writer.write(len(message).to_bytes(2, "big") + message)
    writer.write_eof()
    told = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    found = []
    while told:
        length = int.from_bytes(told[:2], "big")
        found.append(read(told[2 : 2 + length]))
        told = told[2 + length :]
    assert sorted(each.id for each in found) == list(range(40))
    assert {len(each.records) for each in found} == {3}


async def test_one_asker_has_a_few_connections_and_those_beyond_are_closed(running: Running) -> None:
    open_ = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(LIMIT)]
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 10)
    for each in (writer, *(writer for _, writer in open_)):
        each.close()


async def test_what_is_no_message_costs_a_connection_and_nothing_else(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"\x00\x03abc" + b"\xff\xff" + bytes(100))
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    assert len(read(await running.ask(question("web.internal"))).records) == 3


async def test_new_files_are_read_and_a_damaged_one_changes_nothing(running: Running) -> None:
    write_names(running.directory, Names(networks={"net_shop": NetworkNames(hosts={"api": ("10.64.0.7",)})}))
    running.files.look()
    assert read(await running.ask(question("api.internal"))).values == ["10.64.0.7"]
    (running.directory / "names.json").write_text('{"networks": ')
    running.files.look()
    assert read_names(running.directory) is None
    assert read(await running.ask(question("api.internal"))).values == ["10.64.0.7"]
    assert read(await running.ask(question("web.internal"))).rcode == NXDOMAIN


async def test_a_vm_that_asks_before_anybody_told_of_it_is_looked_for(running: Running) -> None:
    write_askers(running.directory, Askers())
    running.files.look()
    assert read(await running.ask(question("web.internal"))).rcode == REFUSED
    await asyncio.sleep(0.03)  # a stranger makes us look so often, and no more
    write_askers(running.directory, LOCAL)
    assert len(read(await running.ask(question("web.internal"))).records) == 3


async def test_a_look_from_outside_tells_whether_it_answers(running: Running) -> None:
    assert await asyncio.to_thread(answers, "127.0.0.1", running.port)
    assert not await asyncio.to_thread(answers, "127.0.0.1", 1, wait_s=0.01)


async def test_its_files_are_for_its_user_alone(running: Running) -> None:
    assert {path.stat().st_mode & 0o777 for path in running.directory.glob("*.json")} == {0o600}
