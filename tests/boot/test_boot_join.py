"""A host joins over a real TLS socket on loopback: whom it talks to, what it keeps, and what it never tells a stranger."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from plasmavmc.host import installation
from shellwego.boot import joincall, nodedir, up
from shellwego.boot.join import join
from shellwego.boot.joincall import Address, parse_address
from shellwego.boot.joinchecks import check_server
from shellwego.boot.nodeport import NodePort
from shellwego.boot.preflight import open_installation
from shellwego.boot.settings import UpSettings
from shellwego.control import joins, nodeauthority
from shellwego.control.joins import JoinWish
from shellwego.control.sealing import Sealer
from shellwego.control.servers import Servers
from shellwego.control.unit import Control
from shellwego.core.assignments import Assignments
from shellwego.core.buskeys import statement
from shellwego.core.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    ShellWeGoError,
    UnavailableError,
)
from shellwego.core.joins import JoinRequest, MemberKind
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.busaccess.memory import MemoryBusAccess
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.images.memory import MemoryImages
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.streams.dialled import DialledStreams
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink import downloads
from shellwego.drivers.uplink.tls import UplinkChannel
from shellwego.ports.busaccess import BusAccess
from shellwego.ports.images import ImageBlobs
from shellwego.wire.tls import Credentials, server_context
from shellwego.wire.uplink import AssignmentsCall, BusPassAnswer, BusPassCall, Method, ServersAnswer, ServersCall
from tests.contract.busaccess_contract import user_key
from tests.contract.node_authority import TestingAuthority
from tests.contract.node_port import listening, port_of
from tests.control.join_world import OPERATOR


@dataclass
class Server:
    control: Control
    port: NodePort
    address: Address
    sealer: Sealer

    async def token(self, wish: JoinWish | None = None) -> tuple[str, str]:
        """The secret and the fingerprint of a new join token."""
        secret = joins.join_secret()
        await self.control.commit(lambda unit: joins.create_join_token(unit, OPERATOR, wish or JoinWish(), secret))
        return secret, (await self.port.authorities.shown()).fingerprint

    async def become(
        self, directory: Path, token: tuple[str, str], kind: MemberKind = MemberKind.NODE
    ) -> nodedir.Member:
        authority = await asyncio.to_thread(joincall.find_authority, self.address, token[1])
        return await asyncio.to_thread(nodedir.become, directory, self.address, authority, token[0], kind)

    async def nodes(self) -> int:
        return await self.control.read(lambda tx: tx.nodes.count())


async def open_port(
    control: Control,
    listener: socket.socket,
    access: BusAccess | None = None,
    sealer: Sealer | None = None,
    images: ImageBlobs | None = None,
) -> NodePort:
    """A server's node port."""
    return await NodePort.open(
        control,
        sealer or Sealer(control, MemoryKms()),
        listener,
        links=DialledStreams(),
        images=images or MemoryImages(SystemClock().now),
        streams=MemoryStreams(),
        servers=Servers(control, "one", ()),
        access=access,
    )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    clock = SystemClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)
    listener = listening()
    sealer = Sealer(control, MemoryKms())
    port = await open_port(control, listener, None, sealer)
    running = asyncio.create_task(port.run())
    yield Server(control, port, Address("127.0.0.1", port_of(listener)), sealer)
    port.stop()
    await running


@asynccontextmanager
async def dialled(server: Server, directory: Path, kind: MemberKind = MemberKind.NODE) -> AsyncIterator[UplinkChannel]:
    """The way of a joined host to its server."""
    joined = nodedir.load(directory, kind)
    channel = UplinkChannel(lambda: [server.address.url], lambda: joined.credentials, call_s=10.0)
    try:
        yield channel
    finally:
        await channel.close()


async def ask(server: Server, directory: Path) -> str:
    """What a joined host is told when it asks for its assignments."""
    member = nodedir.load(directory, MemberKind.NODE).member
    async with dialled(server, directory) as channel:
        return (await channel.call(Method.ASSIGNMENTS, AssignmentsCall(node_id=member.id), Assignments)).node_id


async def ask_until_refused(server: Server, directory: Path) -> None:
    async with asyncio.timeout(20):
        while True:
            await ask(server, directory)
            await asyncio.sleep(0.05)


async def test_a_blob_is_not_missing_while_a_server_that_may_have_it_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long that takes: what came from a tar is nowhere else, and the rows of its image fail for good."""
    now = [0.0]
    monkeypatch.setattr(downloads, "_now", lambda: now[0])
    clock = SystemClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)
    listener = listening()
    port = await open_port(control, listener)
    await Servers(control, "one", (f"https://127.0.0.1:{port_of(listener)}",)).say()
    await Servers(control, "two", ("https://127.0.0.1:1",)).say()
    running = asyncio.create_task(port.run())
    async with asyncio.timeout(20):
        await port.started()
        for now[0] in range(0, 300, 20):
            with pytest.raises(UnavailableError):
                await anext(port.fellow_blob(f"sha256:{'0' * 64}", 0))
    port.stop()
    await running


async def test_a_blob_that_no_server_has_is_missing_where_all_of_them_answer() -> None:
    clock = SystemClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)
    listener = listening()
    port = await open_port(control, listener)
    await Servers(control, "one", (f"https://127.0.0.1:{port_of(listener)}",)).say()
    running = asyncio.create_task(port.run())
    async with asyncio.timeout(20):
        await port.started()
        with pytest.raises(NotFoundError):
            await anext(port.fellow_blob(f"sha256:{'0' * 64}", 0))
    port.stop()
    await running


class SlowImages(MemoryImages):
    """Half of a blob, and the rest once that is let go."""

    def __init__(self) -> None:
        super().__init__(SystemClock().now)
        self.rest = asyncio.Event()

    async def size(self, digest: str) -> int:
        return 2

    async def blob(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        yield b"a"
        await self.rest.wait()
        yield b"b"


async def test_a_call_that_runs_as_the_node_port_is_stopped_comes_to_its_end() -> None:
    """Also where it is stopped and cancelled in the same moment, as the end of a server does it."""
    clock = SystemClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)
    listener, images = listening(), SlowImages()
    port = await open_port(control, listener, images=images)
    await Servers(control, "one", (f"https://127.0.0.1:{port_of(listener)}",)).say()
    running = asyncio.create_task(port.run())
    async with asyncio.timeout(20):
        await port.started()
        chunks = port.fellow_blob(f"sha256:{'0' * 64}", 0)
        assert await anext(chunks) == b"a"
        port.stop()
        running.cancel()
        asyncio.get_running_loop().call_later(0.2, images.rest.set)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert images.rest.is_set(), "it is waited for: at its end the process ends"
        assert [chunk async for chunk in chunks] == [b"b"]


class BrokenServers(Servers):
    async def keep_saying(self) -> None:
        raise RuntimeError("a defect")


async def test_a_node_port_of_which_a_part_ends_ends_as_a_whole() -> None:
    """Else no node hears any more of servers that come, and no certificate is renewed, and nobody knows."""
    clock = SystemClock()
    control = Control(MemoryStore(clock), MemoryBus(), clock)
    port = await open_port(control, listening())
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="a defect"):
            await replace(port, servers=BrokenServers(control, "one", ())).run()


async def test_a_host_joins_and_is_then_known_by_its_key(server: Server, tmp_path: Path) -> None:
    directory = tmp_path / "etc" / "node"
    member = await server.become(directory, await server.token(JoinWish(name="a1", region="north")))
    assert (member.name, member.region, member.servers) == ("a1", "north", (server.address.url,))
    assert await ask(server, directory) == member.id


@pytest.mark.parametrize("kind", MemberKind)
async def test_any_server_tells_a_host_of_servers_that_came_later(
    server: Server, tmp_path: Path, kind: MemberKind
) -> None:
    await server.become(tmp_path / "host", await server.token(JoinWish(kind=kind)), kind)
    later = "https://later.example:7081"
    async with dialled(server, tmp_path / "host", kind) as channel:
        assert (await channel.call(Method.SERVERS, ServersCall(), ServersAnswer)).urls == ()
        await Servers(server.control, "two", (later,)).say()
        async with asyncio.timeout(20):
            while (await channel.call(Method.SERVERS, ServersCall(), ServersAnswer)).urls != (later,):  # noqa: ASYNC110 - it is told nowhere
                await asyncio.sleep(0.05)


async def test_a_host_gets_a_pass_for_a_key_that_it_holds_and_none_where_there_are_none(
    server: Server, tmp_path: Path
) -> None:
    member = await server.become(tmp_path / "node", await server.token())
    key = user_key()
    good = BusPassCall(public_key=key.public, signature=key.sign(statement(member.id)))
    async with dialled(server, tmp_path / "node") as channel:
        assert (await channel.call(Method.BUS_PASS, good, BusPassAnswer)).bus_pass is None
    listener = listening()
    access = MemoryBusAccess(MemoryBus(), server.control.clock)
    port = await open_port(server.control, listener, access, server.sealer)
    running = asyncio.create_task(port.run())
    other = replace(server, port=port, address=Address("127.0.0.1", port_of(listener)))
    async with dialled(other, tmp_path / "node") as channel:
        found = (await channel.call(Method.BUS_PASS, good, BusPassAnswer)).bus_pass
        assert found is not None
        assert access.enter(found, key).open
        for bad, code in (
            (replace(good, public_key="U" * 60), "invalid-nkey"),
            (replace(good, public_key=user_key().public), "bus-key-not-held"),
            (replace(good, signature=b""), "bus-key-not-held"),
        ):
            with pytest.raises(InvalidError) as refused:
                await channel.call(Method.BUS_PASS, bad, BusPassAnswer)
            assert refused.value.code == code
    port.stop()
    await running


async def test_what_a_host_keeps_is_its_owners_alone(server: Server, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    await server.become(directory, await server.token())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(("key.pem", "certificate.pem", "authorities.pem", "member.json"), 0o600)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (directory / "key.pem").chmod(0o640)
    with pytest.raises(ConflictError, match="can be read by others"):
        nodedir.load(directory, MemberKind.NODE)


async def test_whoever_is_not_of_the_tokens_platform_is_sent_nothing(server: Server) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1 << 16))
        writer.close()

    impostor = TestingAuthority()
    context = server_context(impostor.server())
    host = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    async with host:
        secret, fingerprint = await server.token()
        address = Address("127.0.0.1", host.sockets[0].getsockname()[1])
        with pytest.raises(InvalidError, match="nothing was sent") as refused:
            await asyncio.to_thread(joincall.find_authority, address, fingerprint)
        async with asyncio.timeout(10):
            while not heard:  # noqa: ASYNC110 - the impostor tells when it has seen the end
                await asyncio.sleep(0.01)
        assert heard == [b""]
        found, authority = await asyncio.to_thread(check_server, address, fingerprint)
        assert (found[0].state, authority) == ("fail", "")
        assert secret not in refused.value.message


async def test_who_shows_the_authority_without_holding_it_gets_no_token(server: Server, tmp_path: Path) -> None:
    """The authority's certificate is no secret: an impostor can show it behind a leaf of his own."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1 << 16))
        writer.close()

    real = (await server.port.authorities.shown()).certificate
    own = TestingAuthority().server()
    leaf = own.certificate.split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    shown = Credentials(certificate=leaf + real.encode(), key=own.key, authorities=own.authorities)
    host = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=server_context(shown))
    async with host:
        secret, fingerprint = await server.token()
        address = Address("127.0.0.1", host.sockets[0].getsockname()[1])
        authority = await asyncio.to_thread(joincall.find_authority, address, fingerprint)
        with pytest.raises(UnavailableError, match="cannot prove"):
            await asyncio.to_thread(nodedir.become, tmp_path / "n", address, authority, secret, MemberKind.NODE)
    assert not any(heard)


async def test_a_node_cannot_pass_for_a_server(server: Server, tmp_path: Path) -> None:
    await server.become(tmp_path / "node", await server.token())
    joined = nodedir.load(tmp_path / "node", MemberKind.NODE)
    authority = (await server.port.authorities.shown()).certificate
    chain = joined.credentials.certificate + authority.encode()
    shown = Credentials(certificate=chain, key=joined.credentials.key, authorities=joined.credentials.authorities)
    host = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=server_context(shown))
    async with host:
        address = Address("127.0.0.1", host.sockets[0].getsockname()[1])
        with pytest.raises(UnavailableError, match="cannot prove"):
            await asyncio.to_thread(joincall.clock_ahead_s, address, authority)


async def test_a_token_brings_in_one_host_and_that_one_again(server: Server, tmp_path: Path) -> None:
    token = await server.token()
    first = await server.become(tmp_path / "one", token)
    assert await server.become(tmp_path / "one", token) == first
    with pytest.raises(ConflictError) as refused:
        await server.become(tmp_path / "two", token)
    assert refused.value.code == "join-token-used"
    assert not nodedir.has_joined(tmp_path / "two")


async def test_of_two_hosts_at_once_with_one_token_one_joins(server: Server, tmp_path: Path) -> None:
    token = await server.token()
    tried = [server.become(tmp_path / name, token) for name in ("one", "two", "three")]
    answers = await asyncio.gather(*tried, return_exceptions=True)
    assert sorted(type(each).__name__ for each in answers) == ["ConflictError", "ConflictError", "Member"]
    assert await server.nodes() == 1


@pytest.mark.parametrize("end", ["revoked", "unknown"])
async def test_a_token_that_does_not_hold_is_told_as_such(server: Server, tmp_path: Path, end: str) -> None:
    secret, fingerprint = await server.token()
    if end == "revoked":
        row = await server.control.read(lambda tx: tx.join_tokens.select()[0])
        await server.control.commit(lambda unit: joins.revoke_join_token(unit, row))
    else:
        secret = joins.join_secret()
    with pytest.raises(ShellWeGoError) as refused:
        await server.become(tmp_path / "n", (secret, fingerprint))
    assert refused.value.code == f"join-token-{end}"
    assert await server.nodes() == 0


async def test_a_hostile_request_is_refused_over_the_wire(server: Server) -> None:
    secret, fingerprint = await server.token()
    authority = await asyncio.to_thread(joincall.find_authority, server.address, fingerprint)
    for request in (b"", b"x" * 8000, b"\x30\x80" * 40):
        asked = JoinRequest(secret=secret, kind=MemberKind.NODE, request=request, hostname="h", version="1")
        with pytest.raises(InvalidError) as refused:
            await asyncio.to_thread(joincall.join, server.address, authority, asked)
        assert refused.value.code == "bad-certificate-request"


async def test_a_revoked_key_is_shut_out(server: Server, tmp_path: Path) -> None:
    await server.become(tmp_path / "node", await server.token())
    await ask(server, tmp_path / "node")
    await server.control.commit(lambda unit: unit.tx.nodes.delete(unit.tx.nodes.select()[0].id))
    with pytest.raises(ForbiddenError):
        await ask_until_refused(server, tmp_path / "node")


async def test_a_host_of_before_a_rotation_and_one_of_after_it_are_both_let_in(server: Server, tmp_path: Path) -> None:
    await server.become(tmp_path / "one", await server.token())
    fresh = await server.port.authorities.prepare()
    await server.control.commit(lambda unit: nodeauthority.add(unit, fresh))
    await server.port.shown.refresh()
    two = await server.become(tmp_path / "two", await server.token(JoinWish(name="two")))
    assert await ask(server, tmp_path / "one") != two.id
    assert await ask(server, tmp_path / "two") == two.id


async def test_the_clock_is_compared_with_the_servers(server: Server) -> None:
    _, fingerprint = await server.token()
    found, _ = await asyncio.to_thread(check_server, server.address, fingerprint)
    assert [each.state for each in found] == ["ok", "ok"]
    found, _ = await asyncio.to_thread(check_server, server.address, fingerprint, lambda: time.time() + 32)
    assert (found[1].check, found[1].state) == ("clock", "fail")
    assert "ahead of the server's" in found[1].message


@pytest.mark.parametrize(
    "url",
    [
        "http://a:1",
        "https://",
        "a:7081",
        "https://a:x",
        "https://u:p@a",
        "https://a/x",
        "https://a?x",
        "https://a:99999",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidError, match="no address"):
        parse_address(url)


def test_a_port_may_be_left_out() -> None:
    assert parse_address("https://cloud.example") == Address("cloud.example", 7081)
    assert parse_address("https://[::1]:5").url == "https://[::1]:5"


async def test_a_host_that_is_not_ready_asks_nothing(server: Server, tmp_path: Path) -> None:
    secret, fingerprint = await server.token()
    directory = tmp_path / "node"
    await server.become(directory, await server.token())
    words = [server.address.url, secret + fingerprint, "--dir", str(directory), "--data-dir", str(tmp_path)]
    ended = await asyncio.to_thread(CliRunner().invoke, join, words)
    assert ended.exit_code == 1
    assert "has joined already" in ended.output
    assert "nothing was asked" in ended.output
    assert secret not in ended.output
    assert await server.nodes() == 1


class TestAHostThatIsToBeAnEdge:
    """It is looked at as the edge will be started: with its settings."""

    @pytest.fixture(autouse=True)
    def host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(up, "config_file_values", dict)
        monkeypatch.setattr(installation, "RUN_ROOT", tmp_path / "run")
        monkeypatch.setattr(installation, "check_user", lambda: (os.geteuid(), os.getegid()))

    async def told(self, server: Server, tmp_path: Path, *words: str) -> str:
        secret, fingerprint = await server.token(JoinWish(kind=MemberKind.EDGE))
        place = ("--dir", str(tmp_path / "edge"), "--data-dir", str(tmp_path))
        line = [server.address.url, secret + fingerprint, "--edge", "--check", *place, *words]
        return (await asyncio.to_thread(CliRunner().invoke, join, line)).output

    async def test_its_own_port_is_asked_for(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("0.0.0.0", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:  # noqa: S104 - as an edge
            busy, port = str(taken.getsockname()[1]), str(free.getsockname()[1])
            free.close()
            assert f"cannot listen on 0.0.0.0:{busy}" in await self.told(server, tmp_path, "--http-port", busy)
            monkeypatch.setenv("SHELLWEGO_HTTP_PORT", busy)
            assert f"cannot listen on 0.0.0.0:{busy}" in await self.told(server, tmp_path)
            assert f"port {port} is free" in await self.told(server, tmp_path, "--http-port", port)

    async def test_the_next_command_has_the_port_that_was_asked_for(self, server: Server, tmp_path: Path) -> None:
        secret, fingerprint = await server.token(JoinWish(kind=MemberKind.EDGE))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        directory = str(tmp_path / "edge")
        line = [server.address.url, secret + fingerprint, "--edge", "--dir", directory, "--http-port", port]
        ended = await asyncio.to_thread(CliRunner().invoke, join, line)
        assert f"Next: swg install edge --dir {directory} --http-port {port}," in ended.output

    async def test_a_port_that_its_own_haproxy_has_is_no_obstacle(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was left running when the edge ended, and joins anew."""
        monkeypatch.setenv("SHELLWEGO_DATA_DIR", str(tmp_path / "data"))
        (tmp_path / "run").mkdir()
        opened = open_installation(UpSettings(data_dir=tmp_path / "data"))
        os.close(opened.lock)
        with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104 - as above
            busy = str(taken.getsockname()[1])
            line = ("haproxy", "-c", "read -r _", f"{opened.run_dir}/edge/haproxy.cfg")
            kept = await asyncio.create_subprocess_exec(*line, executable="/bin/bash", stdin=asyncio.subprocess.PIPE)
            try:
                assert f"port {busy} is free" in await self.told(server, tmp_path, "--http-port", busy)
            finally:
                kept.kill()
                await kept.wait()


async def test_a_node_is_looked_at_with_its_own_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "config_file_values", lambda: {"cache": str(tmp_path / "own")})
    secret, fingerprint = await server.token()
    line = [server.address.url, secret + fingerprint, "--check", "--dir", str(tmp_path / "n")]
    assert f"{tmp_path / 'own'}" in (await asyncio.to_thread(CliRunner().invoke, join, line)).output


def test_words_that_are_no_token_are_not_repeated(tmp_path: Path) -> None:
    ended = CliRunner().invoke(join, ["https://a:1", "join_secret", "--dir", str(tmp_path)])
    assert ended.exit_code == 2
    assert "join_secret" not in ended.output


def test_nobody_at_the_address_is_told_with_a_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found, _ = check_server(Address("127.0.0.1", taken.getsockname()[1]), "0" * 64)
    assert (found[0].check, found[0].state) == ("platform", "fail")
    assert "node port" in found[0].remedy


def test_a_server_that_speaks_no_tls_is_told_as_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        address = Address("127.0.0.1", plain.getsockname()[1])
        plain.settimeout(5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(joincall, "ANSWER_S", 0.2)
            with pytest.raises(UnavailableError):
                joincall.find_authority(address, "0" * 64)
