"""The resolver on real sockets, in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
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
from plasmavmc.network.dns.server import Bounds, DnsServer
from tests.engine.dns_messages import NAMES, question, read

REFUSED, NXDOMAIN = 5, 3
LIMIT, PLACES = 16, 48
OTHER = "127.0.1.1"
SHOPS = [f"127.0.0.{number}" for number in range(1, 9)]
LOCAL = Askers(networks={OTHER: "net_other", **dict.fromkeys(SHOPS, "net_shop")})
BOUNDS = Bounds(of_all=PLACES, of_network=PLACES, of_asker=LIMIT, idle_s=8.0, idle_where_crowded_s=0.5)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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

    async def connect(self, asker: str) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(asker, 0))


async def ask_on(connection: Connection, message: bytes) -> bytes:
    reader, writer = connection
    writer.write(len(message).to_bytes(2, "big") + message)
    return await asyncio.wait_for(reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), 10)


async def ask_for_ever(writer: asyncio.StreamWriter, message: bytes) -> None:
    while True:
        writer.write((len(message).to_bytes(2, "big") + message) * 1000)
        await writer.drain()


async def is_served(connection: Connection) -> bool:
    try:
        return bool(read(await ask_on(connection, question("web.internal"))).records)
    except (OSError, EOFError):
        return False


@asynccontextmanager
async def serving(tmp_path: Path, bounds: Bounds) -> AsyncIterator[Running]:
    write_names(tmp_path, NAMES)
    write_askers(tmp_path, LOCAL)
    udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
    udp.bind(("127.0.0.1", 0))
    tcp.bind(udp.getsockname())
    files = Files(tmp_path, tmp_path)
    files.look()
    forwarder = Forwarder(tuple, asyncio.get_running_loop().time)
    server = DnsServer(udp, tcp, files.resolver, forwarder, bounds=bounds)
    await server.open()
    yield Running(files, tmp_path, udp.getsockname()[1])
    await server.close()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, BOUNDS) as made:
        yield made


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


async def test_a_network_that_opens_all_the_connections_it_can_leaves_as_many_to_the_next(running: Running) -> None:
    greedy = [await running.connect(asker) for asker in SHOPS for _ in range(PLACES // len(SHOPS))]
    served = [await is_served(each) for each in greedy]
    assert served.count(True) == PLACES // 3
    others = [await running.connect(OTHER) for _ in range(4)]
    assert all([await is_served(each) for each in others])
    for _, writer in (*greedy, *others):
        writer.close()


async def test_where_there_are_many_connections_one_that_says_nothing_is_closed_sooner(running: Running) -> None:
    many = [await running.connect(asker) for asker in (*SHOPS[:2], OTHER) for _ in range(10)]
    assert await is_served(many[-1])
    begun = asyncio.get_running_loop().time()
    reader, _ = many[-1]
    assert not await asyncio.wait_for(reader.read(), 10)
    assert asyncio.get_running_loop().time() - begun < BOUNDS.idle_s / 2
    for _, writer in many:
        writer.close()


async def test_who_asks_without_taking_his_answers_is_closed(tmp_path: Path) -> None:
    many = tuple(f"10.64.{number // 250}.{number % 250 + 2}" for number in range(3000))
    async with serving(tmp_path, replace(BOUNDS, idle_s=0.3)) as running:
        running.files.resolver.tell_names(Names(networks={"net_shop": NetworkNames(hosts={"many": many})}))
        message = question("many.internal")
        _, writer = await running.connect(SHOPS[0])
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask_for_ever(writer, message), 20)
        writer.close()


async def test_a_connection_that_begins_something_longer_than_a_question_is_closed_at_once(running: Running) -> None:
    reader, writer = await running.connect(SHOPS[0])
    for length in (4096, 4097):
        writer.write(length.to_bytes(2, "big") + question("web.internal")[:12] + bytes(length - 12))
    told = await asyncio.wait_for(reader.read(), BOUNDS.idle_s / 2)
    assert told[:2] == len(told[2:]).to_bytes(2, "big"), "one answer, that to the first"
    writer.close()


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
    write_askers(running.directory, LOCAL)
    async with asyncio.timeout(10):
        while (told := read(await running.ask(question("web.internal")))).rcode == REFUSED:
            pass  # a stranger makes us look so often, and no more
    assert len(told.records) == 3


async def test_a_look_from_outside_tells_whether_it_answers(running: Running) -> None:
    assert await asyncio.to_thread(answers, "127.0.0.1", running.port)
    assert not await asyncio.to_thread(answers, "127.0.0.1", 1, wait_s=0.01)


async def test_its_files_are_for_its_user_alone(running: Running) -> None:
    assert {path.stat().st_mode & 0o777 for path in running.directory.glob("*.json")} == {0o600}
