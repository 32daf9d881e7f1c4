"""Published ports, held against real packets: two nodes, a VM of two projects on each, and a stranger beside them.

Whoever answers tells whom it took the other end for: so one sees whether that was left as it is, and by whose host it came.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network
from time import monotonic

import pytest
import pytest_asyncio

from plasmavmc.host.ports import Answerer, PublishedPort, Transport
from plasmavmc.policy import Destination, IpProtocol
from plasmavmc.types import vm_key
from tests.real import network_truth as truth
from tests.real.network_peer import PORT
from tests.real.network_world import Peer
from tests.real.test_network_peers import Node, Nodes, nic, nodes_in

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
OFFERED = range(20_000, 20_100)
SERVED, ELSEWHERE, CLOSED = 20_000, 20_001, 20_002
STRANGER = "192.0.2.3"
GLOBAL = {"one": "2001:db8:1::1", "stranger": "2001:db8:1::3"}
KINDS = ("tcp", "udp")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nodes]:
    async with nodes_in(tmp_path_factory.mktemp("ports"), OFFERED) as made:
        made.one.host.run("ip", "addr", "add", f"{GLOBAL['one']}/64", "dev", "eth0", "nodad")
        made.strangers.run("ip", "addr", "add", f"{GLOBAL['stranger']}/64", "dev", "eth0", "nodad")
        bridged(made, "0")
        await made.one.network.connect([made.two.told])
        await made.two.network.connect([made.one.told])
        yield made


def bridged(nodes: Nodes, value: str) -> None:
    """Whether the hosts have what bridges carry judged as packets, as some tools set it for all bridges of a host."""
    for node in (nodes.one, nodes.two):
        node.host.run("sysctl", "-q", f"net.bridge.bridge-nf-call-iptables={value}", check=False)


def answerer(node: Node, name: str, *, taking: bool = True) -> Answerer:
    """The VM of a project on a node."""
    vm, number = (node.vm if name == "project" else node.other), node.told.network.network_address.packed[2] // 16
    return Answerer(vm_key(nic(number, name).id), IPv4Address(vm.ip), PORT, taking)


def published(number: int, *answerers: Answerer) -> list[PublishedPort]:
    return [PublishedPort(transport, number, answerers) for transport in Transport]


async def publish(nodes: Nodes, *ports: PublishedPort) -> None:
    for node in (nodes.one, nodes.two):
        await node.network.publish(ports)


async def usual(nodes: Nodes) -> None:
    """One port that VMs of node one answer, and one that those of node two do."""
    await publish(
        nodes,
        *published(SERVED, answerer(nodes.one, "project")),
        *published(ELSEWHERE, answerer(nodes.two, "project")),
    )


def answers(peer: Peer, node: Node, port: int) -> list[str]:
    """Whom the VM took us for, by each kind."""
    return peer.probes([(f"{kind}:{port}", str(node.told.via), "") for kind in KINDS])


async def test_the_world_reaches_a_port_at_any_node_and_is_known_where_the_vm_is(nodes: Nodes) -> None:
    await usual(nodes)
    assert answers(nodes.stranger, nodes.one, SERVED) == [STRANGER] * 2
    assert answers(nodes.stranger, nodes.two, ELSEWHERE) == [STRANGER] * 2
    assert answers(nodes.stranger, nodes.one, ELSEWHERE) == [nodes.one.gateway] * 2
    assert answers(nodes.stranger, nodes.two, SERVED) == [nodes.two.gateway] * 2


async def test_where_bridges_are_filtered_as_packets_only_hairpins_to_vms_of_the_node_are_lost(nodes: Nodes) -> None:
    await usual(nodes)
    bridged(nodes, "1")
    assert all(answers(nodes.stranger, nodes.one, SERVED))
    assert all(answers(nodes.one.vm.peer, nodes.one, ELSEWHERE))
    assert answers(nodes.one.other.peer, nodes.one, SERVED) == ["", ""]
    bridged(nodes, "0")


async def test_a_host_reaches_its_own_published_ports(nodes: Nodes) -> None:
    await usual(nodes)
    assert all(answers(nodes.one.peer, nodes.one, SERVED))
    assert all(answers(nodes.one.peer, nodes.one, ELSEWHERE))
    assert nodes.one.peer.probe(f"tcp:{SERVED}", "127.0.0.1") == "", "nothing is published on loopback"


async def test_vms_reach_ports_through_their_host_also_their_own(nodes: Nodes) -> None:
    await usual(nodes)
    for vm in (nodes.one.vm, nodes.one.other):
        for port in (SERVED, ELSEWHERE):
            assert answers(vm.peer, nodes.one, port) == [nodes.one.gateway] * 2
    assert answers(nodes.one.vm.peer, nodes.two, ELSEWHERE) == [str(nodes.one.told.via)] * 2
    for row, address in ((truth.ITS_HOST, str(nodes.one.told.via)), (truth.ITS_HOST, nodes.one.gateway)):
        assert truth.may("VM", truth.PUBLISHED_BY_ITS_HOST, 4)
        assert not truth.may("VM", row, 4)
        assert nodes.one.vm.peer.probes([("tcp", address, ""), ("udp", address, "")]) == ["", ""]


async def test_a_vm_with_a_list_reaches_those_ports_only_that_are_on_it(nodes: Nodes) -> None:
    await usual(nodes)
    asker, key = nodes.one.other.peer, answerer(nodes.one, "other").key
    await nodes.one.network.restrict(key, ())
    assert answers(asker, nodes.one, SERVED) == ["", ""]
    here = IPv4Network(nodes.one.told.via)
    await nodes.one.network.restrict(key, (Destination(here, IpProtocol.TCP, SERVED, SERVED),))
    assert answers(asker, nodes.one, SERVED) == [nodes.one.gateway, ""]
    assert answers(asker, nodes.one, ELSEWHERE) == ["", ""]
    await nodes.one.network.restrict(key, None)
    assert all(answers(asker, nodes.one, SERVED))


async def test_only_what_is_published_is_open(nodes: Nodes) -> None:
    await usual(nodes)
    assert answers(nodes.stranger, nodes.one, CLOSED) == ["", ""]
    for vm in (nodes.one.vm, nodes.one.other):
        assert nodes.stranger.probes([(kind, vm.ip, "") for kind in truth.KINDS]) == [""] * 3
    assert nodes.one.vm.peer.probe(f"tcp:{SERVED}", nodes.one.gateway) == "", "it is no address of the world's"


async def test_by_ipv6_the_vms_of_a_node_answer_at_its_global_address(nodes: Nodes) -> None:
    await usual(nodes)
    here = [(f"{kind}:{SERVED}", GLOBAL["one"], "") for kind in KINDS]
    assert nodes.stranger.probes(here) == ["fe80::1"] * 2
    assert nodes.stranger.probe(f"tcp:{ELSEWHERE}", GLOBAL["one"]) == ""


async def test_several_vms_share_a_port_and_one_that_ends_gets_nothing_new(nodes: Nodes) -> None:
    one = nodes.one
    await publish(nodes, *published(SERVED, answerer(one, "project"), answerer(one, "other")))
    shares = await hits(nodes, 60)
    assert all(count >= 10 for count in shares), shares
    await publish(nodes, *published(SERVED, answerer(one, "project", taking=False), answerer(one, "other")))
    assert await hits(nodes, 20) == (0, 20)


_OWN_PORTS = itertools.count(10_000)
"""From which nobody sent before: what comes from a port again is no new connection, and goes to the VM that it went to."""


async def hits(nodes: Nodes, count: int) -> tuple[int, int]:
    """How many datagrams of new connections came to the VMs of node one."""
    before = [len(vm.peer.seen()) for vm in (nodes.one.vm, nodes.one.other)]
    orders = [(f"udp:{SERVED}", str(nodes.one.told.via), f":{next(_OWN_PORTS)}") for _ in range(count)]
    assert all(await asyncio.to_thread(nodes.stranger.probes, orders))
    after = [len(vm.peer.seen()) for vm in (nodes.one.vm, nodes.one.other)]
    return after[0] - before[0], after[1] - before[1]


async def test_a_client_is_led_from_a_vm_that_is_gone_to_one_that_is_there(nodes: Nodes) -> None:
    """It sends from one port again and again, which the kernel takes for one connection."""
    one = nodes.one
    await publish(nodes, *published(SERVED, answerer(one, "project", taking=False), answerer(one, "other")))
    again = (f"udp:{SERVED}", str(one.told.via), ":34567")
    for left, right in (("project", "other"), ("other", "project")):
        await publish(nodes, *published(SERVED, answerer(one, left)))
        assert nodes.stranger.probe(*again) == STRANGER
        await publish(nodes, *published(SERVED, answerer(one, left, taking=False), answerer(one, right)))
        before = len(vm_of(one, left).peer.seen())
        assert nodes.stranger.probe(*again) == STRANGER
        assert len(vm_of(one, left).peer.seen()) == before + 1, "what is open stays while the VM is there"
        await publish(nodes, *published(SERVED, answerer(one, right)))
        assert nodes.stranger.probe(*again) == STRANGER
        assert len(vm_of(one, left).peer.seen()) == before + 1
    await publish(nodes)
    assert nodes.stranger.probe(*again) == ""


_MANY = 20_000
_FROM_MANY_PORTS = """
import socket, sys
for number in range(35_000, 35_000 + int(sys.argv[3])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("", number))
        sender.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
"""


async def test_of_many_connections_those_of_a_vm_that_is_gone_are_forgotten_in_a_moment(nodes: Nodes) -> None:
    """A helper that is busy for a minute is given up by its engine."""
    await usual(nodes)
    one = nodes.one
    other = answerer(one, "other")
    await publish(nodes, *published(SERVED, answerer(one, "project")), *published(CLOSED, other))
    for number, many in ((SERVED, _MANY), (CLOSED, 100)):
        nodes.strangers.run(sys.executable, "-c", _FROM_MANY_PORTS, str(one.told.via), str(number), str(many))
    gone, stays = one.vm.ip, one.other.ip
    assert led(one, SERVED, gone) >= _MANY
    began = monotonic()
    await one.network.publish([*published(SERVED, other), *published(CLOSED, other)])
    assert monotonic() - began < 2
    assert led(one, SERVED, gone) == 0
    assert led(one, CLOSED, stays) >= 100


def led(node: Node, number: int, address: str) -> int:
    """Connections to a port of a node that it remembers as led to a VM."""
    told = node.host.run("cat", "/proc/net/nf_conntrack").splitlines()
    return sum(f" dport={number} " in line and f" src={address} " in line for line in told)


def vm_of(node: Node, name: str) -> object:
    return node.vm if name == "project" else node.other


async def test_a_vm_that_stops_or_is_gone_gives_way_by_itself_to_those_of_other_nodes(nodes: Nodes) -> None:
    one = nodes.one
    key, spec = vm_key("vm_short"), nic(1, "short", 9)
    attachment = await one.network.setup_tap(key, spec)
    await one.network.admit(key)
    short = Answerer(key, attachment.lease.ipv4, PORT)
    await publish(nodes, *published(SERVED, short, answerer(nodes.two, "project")))
    assert answers(nodes.stranger, one, SERVED) == ["", ""], "nobody serves in it"
    await one.network.retire(key)
    assert answers(nodes.stranger, one, SERVED) == [one.gateway] * 2
    await one.network.release(key)
    os.close(attachment.fd)
    assert answers(nodes.stranger, one, SERVED) == [one.gateway] * 2


async def test_ports_answer_while_vms_come_and_go_and_after_others_took_the_rules_away(nodes: Nodes) -> None:
    await usual(nodes)
    one = nodes.one

    async def churn() -> None:
        for number in range(5):
            key = vm_key(f"vm_churn_{number}")
            attachment = await one.network.setup_tap(key, nic(1, f"churn_{number}", 10 + number))
            await one.network.admit(key)
            await one.network.publish([*published(SERVED, answerer(one, "project")), *published(CLOSED + number)])
            await one.network.release(key)
            os.close(attachment.fd)

    orders = [(f"{kind}:{SERVED}", str(one.told.via), "") for kind in KINDS * 20]
    found, _ = await asyncio.gather(asyncio.to_thread(nodes.stranger.probes, orders), churn())
    assert found == [STRANGER] * len(orders)
    one.host.run("nft", "flush", "map", "inet", one.helper.names.table, "doors")
    assert answers(nodes.stranger, one, SERVED) == ["", ""]
    assert "doors" in await one.network.heal()
    assert answers(nodes.stranger, one, SERVED) == [STRANGER] * 2


async def test_ports_stay_open_while_a_node_starts_again(nodes: Nodes) -> None:
    await usual(nodes)
    nodes.two.helper.restart()
    assert answers(nodes.stranger, nodes.two, ELSEWHERE) == [STRANGER] * 2
