"""Who is let in at the node port: the keys that stand, and nobody who only says so."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace

import pytest

from shellwego.api.uplink.callers import LOOK_S, Callers
from shellwego.core.assignments import Registration
from shellwego.core.errors import ForbiddenError, ShellWeGoError, UnavailableError
from shellwego.core.nodecallers import NodeCaller
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.streams.dial import WebSocketDialler
from shellwego.drivers.uplink.tls import TlsEdgeUplink, TlsNodeUplink
from shellwego.wire.tls import Credentials, Peer, client_context
from tests.contract.node_authority import TestingAuthority
from tests.contract.node_port import Port, Rig
from tests.contract.uplink_contract import (
    BACKUP_REQUEST,
    EDGE_REPORT,
    FACTS,
    KEY_REQUEST,
    REPORT,
    SECRETS_REQUEST,
    Recorder,
)


async def refused(rig: Rig, port: Port, credentials: Credentials) -> ShellWeGoError:
    """What a node with these credentials hears, and that nothing of it arrived."""
    with pytest.raises(ShellWeGoError) as caught:
        await TlsNodeUplink(rig.channel(credentials, port.url)).report(REPORT)
    assert port.control.got == []
    return caught.value


async def test_a_certificate_of_another_authority_is_not_let_in(rig: Rig) -> None:
    port = rig.port()
    foreign = replace(TestingAuthority().member("node_1"), authorities=rig.identities.authority.pem)
    error = await refused(rig, port, foreign)
    assert (type(error), error.code) == (UnavailableError, "uplink-hung-up")
    assert "certificate" in error.resolution
    assert port.identities.asked == 0


async def test_a_certificate_that_has_ended_is_not_let_in(rig: Rig) -> None:
    error = await refused(rig, rig.port(), rig.identities.authority.member("node_1", life_s=-60))
    assert error.code == "uplink-certificate-expired"
    assert "clock" in error.resolution


async def test_a_certificate_that_ends_while_its_connection_is_open_is_out() -> None:
    clock = VirtualClock()

    async def identify(_key: str, _authority_id: str) -> NodeCaller:
        return NodeCaller(node_id="node_1", name="one")

    callers, peer = Callers(identify, clock), Peer("key", clock.now() + 10)
    assert (await callers.caller(peer)).id == "node_1"
    await clock.run(clock.sleep(11))
    with pytest.raises(ForbiddenError) as caught:
        await callers.caller(peer)
    assert caught.value.code == "node-certificate-expired"


async def test_a_servers_certificate_makes_nobody_a_node(rig: Rig) -> None:
    error = await refused(rig, rig.port(), rig.identities.authority.server())
    assert (type(error), error.code) == (ForbiddenError, "node-key-unknown")


async def test_a_key_that_nobody_knows_is_not_let_in(rig: Rig) -> None:
    error = await refused(rig, rig.port(), rig.identities.authority.member("node_1"))
    assert (type(error), error.code) == (ForbiddenError, "node-key-unknown")


@pytest.mark.parametrize("who", ["another authority's server", "a node", "a server of another name"])
async def test_nothing_is_sent_to_who_is_no_server_of_this_platform(rig: Rig, who: str) -> None:
    authority = rig.identities.authority
    shown = {
        "another authority's server": TestingAuthority().server(),
        "a node": authority.member_that_names_the_server(),
        "a server of another name": authority.server("127.0.0.1"),
    }[who]
    port = rig.port(credentials=replace(shown, authorities=authority.pem))
    node = rig.identities.node()
    error = await refused(rig, port, node)
    assert (type(error), error.code) == (UnavailableError, "uplink-untrusted")
    with pytest.raises(UnavailableError):
        async with WebSocketDialler(lambda: node)(port.url):
            pass


async def test_a_retired_key_is_out_with_its_link(rig: Rig) -> None:
    port, node = rig.port(), rig.identities.node()
    uplink = TlsNodeUplink(rig.channel(node, port.url))
    rig.link(node, port.url)
    await port.linked("node_1")
    assert await uplink.report(REPORT) == 3
    rig.identities.retire(node)
    with pytest.raises(ForbiddenError):
        await uplink.report(REPORT)
    await port.linked("node_1", up=False)


def test_a_link_is_looked_at_so_often_that_a_key_is_out_within_a_second() -> None:
    """Whoever knows the keys may believe an answer for half a second."""
    assert LOOK_S + 0.5 < 1.0


async def test_authorities_are_exchanged_while_the_server_runs(rig: Rig) -> None:
    port, old = rig.port(), rig.identities.node()
    successor = TestingAuthority()
    both = rig.identities.authority.pem + successor.pem
    new = replace(successor.member("node_1"), authorities=both)
    assert (await refused(rig, port, new)).code == "uplink-hung-up"
    port.credentials = replace(port.credentials, authorities=both)
    assert (await refused(rig, port, new)).code == "node-key-unknown"
    assert await TlsNodeUplink(rig.channel(old, port.url)).report(REPORT) == 3


async def test_a_node_uses_its_renewed_certificate_from_the_next_call_on(rig: Rig) -> None:
    port = rig.port()
    shown = [rig.identities.node()]
    channel = rig.channel(shown[0], port.url)
    channel._credentials = lambda: shown[0]
    uplink = TlsNodeUplink(channel)
    assert await uplink.report(REPORT) == 3
    rig.identities.retire(shown[0])
    shown[0] = rig.identities.node()
    assert await uplink.report(REPORT) == 3


class TestSpeakingForAnother:
    async def test_a_node_speaks_for_itself_only(self, rig: Rig) -> None:
        port = rig.port()
        other = TlsNodeUplink(rig.channel(rig.identities.node("node_2", "two"), port.url))
        calls = (
            other.register(Registration(name="two", facts=FACTS, known_node_id="node_1")),
            other.assignments("node_1"),
            other.report(REPORT),
            other.secrets(SECRETS_REQUEST),
            other.backup_access(BACKUP_REQUEST),
            other.volume_key(KEY_REQUEST),
        )
        for call in calls:
            with pytest.raises(ForbiddenError) as caught:
                await call
            assert caught.value.code == "uplink-not-yours"
        assert port.control.got == []

    async def test_an_edge_speaks_for_itself_only(self, rig: Rig) -> None:
        port = rig.port()
        other = TlsEdgeUplink(rig.channel(rig.identities.edge("edg_2", "back"), port.url))
        for call in (other.routes("edg_1", 8), other.report_edge(EDGE_REPORT)):
            with pytest.raises(ForbiddenError) as caught:
                await call
            assert caught.value.code == "uplink-not-yours"
        assert port.control.got == []

    async def test_a_node_is_called_what_it_joined_as(self, rig: Rig) -> None:
        control = Recorder()
        node = TlsNodeUplink(rig.channel(rig.identities.node(), rig.port(control).url))
        await node.register(Registration(name="another", facts=FACTS))
        assert control.got == [Registration(name="one", facts=FACTS, joined=True)]

    async def test_an_edge_is_called_what_it_joined_as(self, rig: Rig) -> None:
        control = Recorder()
        await TlsEdgeUplink(rig.channel(rig.identities.edge(), rig.port(control).url)).register_edge("another")
        assert control.got == ["front"]

    async def test_an_answer_for_another_is_given_to_nobody(self, rig: Rig) -> None:
        """The control plane found another by the name; what it says of that one is not told."""
        port = rig.port()
        for call in (
            TlsNodeUplink(rig.channel(rig.identities.node("node_2"), port.url)).register(
                Registration(name="one", facts=FACTS)
            ),
            TlsEdgeUplink(rig.channel(rig.identities.edge("edg_2"), port.url)).register_edge("front"),
        ):
            with pytest.raises(ForbiddenError):
                await call

    async def test_a_node_is_no_edge_and_an_edge_no_node(self, rig: Rig) -> None:
        port = rig.port()
        edge_as_node = TlsNodeUplink(rig.channel(rig.identities.edge(), port.url))
        node_as_edge = TlsEdgeUplink(rig.channel(rig.identities.node(), port.url))
        for call in (
            edge_as_node.secrets(SECRETS_REQUEST),
            edge_as_node.backup_access(BACKUP_REQUEST),
            edge_as_node.volume_key(KEY_REQUEST),
            edge_as_node.report(REPORT),
            node_as_edge.routes("edg_1", 0),
            node_as_edge.register_edge("front"),
        ):
            with pytest.raises(ForbiddenError):
                await call
        assert port.control.got == []


class TestTheTls:
    async def handshake(self, rig: Rig, port: Port, context: ssl.SSLContext) -> ssl.SSLObject:
        reader, writer = await rig.connect(port, context)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        return tls

    async def test_nothing_below_1_3_is_spoken(self, rig: Rig) -> None:
        port = rig.port()
        node = rig.identities.node()
        context = client_context(node.authorities, node)
        assert (await self.handshake(rig, port, context)).version() == "TLSv1.3"
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.load_verify_locations(cadata=node.authorities.decode())
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await self.handshake(rig, port, old)

    async def test_sessions_are_not_resumed(self, rig: Rig) -> None:
        node = rig.identities.node()
        tls = await self.handshake(rig, rig.port(), client_context(node.authorities, node))
        assert tls.session is None or not tls.session.has_ticket


async def test_a_control_plane_that_cannot_tell_keeps_links_and_takes_no_calls() -> None:
    async def away(_key: str, _authority_id: str) -> NodeCaller:
        raise UnavailableError("store-unavailable", "the store does not answer")

    callers = Callers(away, SystemClock())
    watching = asyncio.ensure_future(
        callers.until_shut_out(Peer("key", time.time() + 100), NodeCaller(node_id="node_1", name="one"))
    )
    done, _ = await asyncio.wait([watching], timeout=0.6)
    assert not done
    watching.cancel()
    with pytest.raises(UnavailableError):
        await callers.caller(Peer("key", time.time() + 100))
