"""What a hostile caller of the node port may send, and what it costs nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from http import HTTPStatus

import pytest

from shellwego.api.uplink import callers
from shellwego.api.uplink.bodies import Bodies
from shellwego.api.uplink.callers import Callers
from shellwego.api.uplink.door import Bounds
from shellwego.api.uplink.methods import Served, ServedToStrangers, methods
from shellwego.core.errors import ThrottledError, UnavailableError
from shellwego.core.nodecallers import NodeCaller
from shellwego.core.plans import Rate
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.uplink.tls import TlsNodeUplink
from shellwego.wire import uplink
from shellwego.wire.codec import decode, encode
from shellwego.wire.tls import Credentials, Peer, client_context
from shellwego.wire.uplink import AssignmentsCall, Done, Method, Refusal
from tests.contract.node_port import Port, Rig
from tests.contract.uplink_contract import REPORT, Recorder

ASK = encode(AssignmentsCall(node_id="node_1"))


@dataclass
class Raw:
    """A connection on which anything may be said."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, method: str, *headers: str, body: bytes = b"", length: int | None = None) -> None:
        version = f"{uplink.PROTOCOL_HEADER}: {uplink.PROTOCOL}"
        lines = [f"POST {uplink.BASE}{method} HTTP/1.1", "Host: x", *(headers or (version,))]
        if length != -1:
            lines.append(f"Content-Length: {len(body) if length is None else length}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def hear(self) -> tuple[int, bytes]:
        """Status and body of an answer."""
        async with asyncio.timeout(10):
            status = int((await self.reader.readline()).split()[1])
            length = 0
            while (line := (await self.reader.readline()).strip()) != b"":
                name, _, value = line.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
            return status, await self.reader.readexactly(length)

    async def refusal(self) -> tuple[int, str]:
        status, body = await self.hear()
        return status, decode(Refusal, body).code

    async def closed(self) -> None:
        """Return when the server has closed the connection."""
        try:
            async with asyncio.timeout(10):
                while await self.reader.read(1024):
                    pass
        except (ConnectionError, ssl.SSLError):
            return


async def raw(rig: Rig, port: Port, credentials: Credentials | None) -> Raw:
    return Raw(*await rig.connect(port, client_context(rig.identities.authority.pem, credentials)))


async def until_answered(node: TlsNodeUplink) -> None:
    """Report until the server takes it."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(UnavailableError):
                await node.report(REPORT)
                return


async def test_without_a_certificate_nothing_is_answered(rig: Rig) -> None:
    port = rig.port()
    stranger = await raw(rig, port, None)
    for method in (*methods(port.control, port.control), uplink.LINK):
        stranger.say(method, body=ASK)
        assert await stranger.refusal() == (HTTPStatus.UNAUTHORIZED, "uplink-no-certificate")
    assert (port.control.got, port.identities.asked) == ([], 0)


async def test_a_stranger_may_call_what_makes_him_known_and_not_too_often(rig: Rig) -> None:
    asked: list[str] = []

    async def join(question: AssignmentsCall) -> Done:
        asked.append(question.node_id)
        return Done()

    port = rig.port(more={"join": ServedToStrangers(AssignmentsCall, join)})
    stranger = await raw(rig, port, None)
    refusals: list[tuple[int, str]] = []
    for _ in range(60):
        stranger.say("join", body=ASK)
        status, body = await stranger.hear()
        if status != HTTPStatus.OK:
            refusals.append((status, decode(Refusal, body).code))
    assert len(asked) >= 50
    assert set(refusals) == {(HTTPStatus.TOO_MANY_REQUESTS, "uplink-too-often")}
    assert await TlsNodeUplink(rig.channel(rig.identities.node(), port.url)).report(REPORT) == 3


async def test_whatever_a_stranger_asks_is_counted(rig: Rig) -> None:
    port = rig.port()
    stranger = await raw(rig, port, None)
    codes = []
    for _ in range(60):
        stranger.say("a-method-of-2028", body=ASK)
        codes.append((await stranger.refusal())[1])
    assert set(codes[:40]) == {"uplink-method-unknown"}
    assert codes[-1] == "uplink-too-often"
    assert await TlsNodeUplink(rig.channel(rig.identities.node(), port.url)).report(REPORT) == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_strangers_of_one_network_of_ipv6_are_counted_as_one(one: str, other: str, same: bool) -> None:
    assert (callers.origin_of(one) == callers.origin_of(other)) is same


class TestBodies:
    @pytest.mark.parametrize(
        ("method", "length"),
        [("assignments", uplink.MAX_BODY + 1), ("report", (16 << 20) + 1), ("secrets", 1 << 62)],
    )
    async def test_that_are_too_long_are_refused_before_they_come(self, rig: Rig, method: str, length: int) -> None:
        port = rig.port()
        node = await raw(rig, port, rig.identities.node())
        node.say(method, length=length)
        assert await node.refusal() == (HTTPStatus.BAD_REQUEST, "uplink-body-too-large")
        await node.closed()
        assert port.control.got == []

    async def test_that_do_not_come_are_not_waited_for(self, rig: Rig) -> None:
        port = rig.port(bodies=lambda: Bodies(body_s=0.1, large_body_s=0.1))
        for length in (len(ASK) + 1, 2 << 20):
            node = await raw(rig, port, rig.identities.node())
            node.say("report", body=ASK, length=length)
            assert await node.refusal() == (HTTPStatus.BAD_REQUEST, "uplink-body-too-slow")
            await node.closed()
        assert port.control.got == []

    async def test_of_unknown_length_or_packed_are_refused(self, rig: Rig) -> None:
        port, credentials = rig.port(), rig.identities.node()
        version = f"{uplink.PROTOCOL_HEADER}: {uplink.PROTOCOL}"
        for header, body, length in (
            ("Transfer-Encoding: chunked", b"0\r\n\r\n", -1),
            ("Content-Encoding: gzip", ASK, None),
        ):
            node = await raw(rig, port, credentials)
            node.say("assignments", version, header, body=body, length=length)
            assert await node.refusal() == (HTTPStatus.BAD_REQUEST, "uplink-length-missing")

    @pytest.mark.parametrize("body", [b"", b"\xc1", encode("text"), encode({"node_id": 7}), encode({}), b"\x81" * 1000])
    async def test_that_mean_nothing_are_refused(self, rig: Rig, body: bytes) -> None:
        port = rig.port()
        node = await raw(rig, port, rig.identities.node())
        node.say("assignments", body=body)
        assert await node.refusal() == (HTTPStatus.BAD_REQUEST, "uplink-malformed")
        assert port.control.got == []

    async def test_with_fields_of_a_newer_agent_are_understood(self, rig: Rig) -> None:
        node = await raw(rig, rig.port(), rig.identities.node())
        node.say("assignments", body=encode({"node_id": "node_1", "since": 7}))
        assert (await node.hear())[0] == HTTPStatus.OK

    async def test_of_a_large_report_pass(self, rig: Rig) -> None:
        control = Recorder()
        large = {f"ins_{number}": next(iter(REPORT.instances.values())) for number in range(9_000)}
        node = TlsNodeUplink(rig.channel(rig.identities.node(), rig.port(control).url))
        report = type(REPORT)(node_id="node_1", epoch=3, sequence=1, facts=REPORT.facts, instances=large)
        assert len(encode(report)) > 1 << 20
        assert await node.report(report) == 3
        assert control.got == [report]


class TestVersions:
    async def test_a_caller_one_version_newer_is_served(self, rig: Rig) -> None:
        node = await raw(rig, rig.port(), rig.identities.node())
        node.say("assignments", f"{uplink.PROTOCOL_HEADER}: {uplink.PROTOCOL + 1}", body=ASK)
        assert (await node.hear())[0] == HTTPStatus.OK

    @pytest.mark.parametrize(
        ("header", "refusal"),
        [
            (f"{uplink.PROTOCOL_HEADER}: {uplink.PROTOCOL + 2}", (422, "uplink-too-new")),
            (f"{uplink.PROTOCOL_HEADER}: x", (400, "uplink-version-missing")),
            ("X-Other: 1", (400, "uplink-version-missing")),
        ],
    )
    async def test_others_are_refused(self, rig: Rig, header: str, refusal: tuple[int, str]) -> None:
        port = rig.port()
        node = await raw(rig, port, rig.identities.node())
        node.say("report", header, body=encode(REPORT))
        assert await node.refusal() == refusal
        assert port.control.got == []

    async def test_an_unknown_method_is_told_as_such(self, rig: Rig) -> None:
        node = await raw(rig, rig.port(), rig.identities.node())
        for method in ("a-method-of-2028", "", "../report", "report/"):
            node.say(method, body=ASK)
            assert await node.refusal() == (HTTPStatus.NOT_FOUND, "uplink-method-unknown")


class TestConnections:
    async def test_one_that_does_not_shake_hands_is_closed(self, rig: Rig) -> None:
        port = rig.port(bounds=Bounds(handshake_s=0.1))
        await Raw(*await rig.connect(port)).closed()

    async def test_one_that_speaks_no_tls_is_closed(self, rig: Rig) -> None:
        connection = Raw(*await rig.connect(rig.port()))
        connection.say("report")
        await connection.closed()

    async def test_too_many_strangers_are_turned_away_and_room_comes_back(self, rig: Rig) -> None:
        port = rig.port(bounds=Bounds(strangers_of_address=3))
        held = [Raw(*await rig.connect(port)) for _ in range(3)]
        await Raw(*await rig.connect(port)).closed()
        held[0].writer.transport.abort()
        node = TlsNodeUplink(rig.channel(rig.identities.node(), port.url))
        await until_answered(node)

    async def test_strangers_cannot_take_the_room_of_nodes_that_were_there(self, rig: Rig) -> None:
        port, credentials = rig.port(bounds=Bounds(strangers=2)), rig.identities.node()
        assert await TlsNodeUplink(rig.channel(credentials, port.url)).report(REPORT) == 3
        held = [await rig.connect(port, source=f"127.0.0.{number}") for number in (2, 3)]
        await Raw(*await rig.connect(port, source="127.0.0.4")).closed()
        assert await TlsNodeUplink(rig.channel(credentials, port.url)).report(REPORT) == 3
        assert len(held) == 2

    async def test_a_stranger_who_says_nothing_is_closed(self, rig: Rig) -> None:
        await (await raw(rig, rig.port(bounds=Bounds(stranger_s=0.1)), None)).closed()

    async def test_a_head_that_does_not_end_is_not_waited_for(self, rig: Rig) -> None:
        node = await raw(rig, rig.port(bounds=Bounds(idle_s=0.2)), rig.identities.node())
        node.writer.write(b"POST /v1/uplink/report HTTP/1.1\r\nX-Slow: ")
        await node.closed()

    async def test_nonsense_fills_no_log(self, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
        port = rig.port()
        for nonsense in (b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/uplink/x HTTP/1.1\r\nA\r\n\r\n"):
            stranger = await raw(rig, port, None)
            stranger.writer.write(nonsense)
            await stranger.closed()
        assert caplog.records == []

    async def test_a_head_that_grows_is_not_kept(self, rig: Rig) -> None:
        node = await raw(rig, rig.port(), rig.identities.node())
        node.writer.write(b"POST /v1/uplink/report HTTP/1.1\r\n" + b"X: " + b"x" * 100_000)
        assert (await node.hear())[0] == HTTPStatus.BAD_REQUEST
        await node.closed()

    async def test_one_key_has_only_so_many(self, rig: Rig) -> None:
        port, credentials = rig.port(bounds=Bounds(of_key=2)), rig.identities.node()
        held = [await raw(rig, port, credentials) for _ in range(2)]
        for each in held:
            each.say("assignments", body=ASK)
            assert (await each.hear())[0] == HTTPStatus.OK
        await (await raw(rig, port, credentials)).closed()
        other = await raw(rig, port, rig.identities.node("node_2"))
        other.say("assignments", body=encode(AssignmentsCall(node_id="node_2")))
        assert (await other.hear())[0] == HTTPStatus.OK


class TestRates:
    async def identify(self, key: str, _authority_id: str) -> NodeCaller:
        return NodeCaller(node_id=f"node_{key}", name=key)

    async def test_a_key_has_its_rate_and_no_other_pays_for_it(self) -> None:
        clock = VirtualClock()
        counting = Callers(self.identify, clock, Rate(per_minute=60, burst=3))
        peers = [Peer(key, clock.now() + 1000) for key in "ab"]

        async def call(peer: Peer) -> None:
            async with counting.call(peer):
                pass

        for _ in range(3):
            await call(peers[0])
        with pytest.raises(ThrottledError):
            await call(peers[0])
        await call(peers[1])
        await clock.run(clock.sleep(1.1))
        await call(peers[0])

    async def test_a_key_may_send_only_so_many_bytes_and_no_other_pays_for_it(self) -> None:
        clock = VirtualClock()
        counting = Callers(self.identify, clock, bytes_rate=Rate(per_minute=6000, burst=1000))
        peers = [Peer(key, clock.now() + 1000) for key in "ab"]
        counting.count_body(peers[0], 900)
        with pytest.raises(ThrottledError):
            counting.count_body(peers[0], 200)
        counting.count_body(peers[1], 900)
        await clock.run(clock.sleep(2))
        counting.count_body(peers[0], 200)

    async def test_bodies_are_counted_before_they_are_read(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        port, credentials = rig.port(), rig.identities.node()
        monkeypatch.setattr(port.server._callers, "_bytes_rate", Rate(per_minute=60, burst=len(ASK) + 60))
        node = await raw(rig, port, credentials)
        node.say("assignments", body=ASK)
        assert (await node.hear())[0] == HTTPStatus.OK
        node.say("report", length=1 << 19)
        assert await node.refusal() == (HTTPStatus.TOO_MANY_REQUESTS, "uplink-too-often")

    async def test_what_leaves_a_record_has_a_rate_of_its_own(self, rig: Rig) -> None:
        async def answer(_caller: object, _asked: AssignmentsCall) -> Done:
            return Done()

        port = rig.port(more={"rare": Served(AssignmentsCall, answer, rate=Rate(per_minute=1, burst=2))})
        nodes = [await raw(rig, port, rig.identities.node(f"node_{number}")) for number in (1, 2)]
        statuses = []
        for node in (nodes[0], nodes[0], nodes[0], nodes[1]):
            node.say("rare", body=ASK)
            statuses.append((await node.hear())[0])
        assert statuses == [HTTPStatus.OK, HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.OK]
        nodes[0].say("assignments", body=ASK)
        assert (await nodes[0].hear())[0] == HTTPStatus.OK

    @pytest.mark.parametrize("method", [Method.REGISTER, Method.REGISTER_EDGE, Method.SECRETS, Method.BACKUP_ACCESS])
    def test_registrations_and_secrets_are_such(self, method: Method) -> None:
        served = methods(Recorder(), Recorder())[method]
        assert isinstance(served, Served)
        assert served.rate is not None

    async def test_a_key_has_only_so_many_calls_under_way(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(callers, "MAX_AT_ONCE", 3)
        held = asyncio.Event()
        busy = 0

        async def hold(_caller: object, _asked: AssignmentsCall) -> Done:
            nonlocal busy
            busy += 1
            await held.wait()
            return Done()

        port = rig.port(more={"hold": Served(AssignmentsCall, hold)}, bounds=Bounds())
        credentials = rig.identities.node()
        connections = [await raw(rig, port, credentials) for _ in range(4)]
        for each in connections[:-1]:
            each.say("hold", body=ASK)
        async with asyncio.timeout(10):
            while busy < 3:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.005)
        connections[-1].say("hold", body=ASK)
        assert await connections[-1].refusal() == (HTTPStatus.TOO_MANY_REQUESTS, "uplink-too-often")
        held.set()
        assert {(await each.hear())[0] for each in connections[:-1]} == {HTTPStatus.OK}
