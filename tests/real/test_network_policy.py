"""What lists of destinations let pass, by protocol and port, and how many connections, against real packets; VMs are
namespaces."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address, IPv4Network

import pytest
import pytest_asyncio

from plasmavmc.host import operations
from plasmavmc.host.ports import Answerer, PublishedPort, PublishSite, Transport
from plasmavmc.network.backend import NoNameService
from plasmavmc.policy import Destination, IpProtocol
from plasmavmc.types import vm_key
from tests.contract.host_rig import Namespace, RealHelper
from tests.real import network_truth as truth
from tests.real.network_peer import DNS, PORT
from tests.real.network_world import FAR_OUTSIDE, HOST_OUTSIDE, OUTSIDE, Vm, World

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def a_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One installation without VMs, each of which may have few connections."""
    async with AsyncExitStack() as undo:
        made = World()
        undo.callback(made.close)
        made.lay_cable()
        helper = RealHelper(made.host, tmp_path_factory.mktemp("policy") / "run", publish=OFFERED)
        undo.push_async_callback(helper.clean)
        made.outside.run("ip", "addr", "add", f"{PEER.gateway}/32", "dev", "lo")
        await made.add_installation(helper, LIMIT, Serving(), PublishSite(OFFERED))
        yield made


LIMIT = 200
FLOOD = """
import contextlib, socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
for number in range(20_000, 25_000):
    with contextlib.suppress(BlockingIOError), socket.socket(socket.AF_INET, kind) as one:
        one.setblocking(False)
        one.bind((sys.argv[4], number))
        one.connect((sys.argv[2], int(sys.argv[3])))
        if sys.argv[1] == "udp":
            one.send(b"x")
"""
"""Begins 5,000 connections: of a kind, to an address, a port, from an address."""
NOBODYS_PORT = 9
OFFERED = range(20_000, 20_010)
"""Ports of the host at which VMs may answer."""
PEER = operations.Peer(IPv4Network("10.127.240.0/20"), IPv4Address(OUTSIDE))


class Serving(NoNameService):
    """Names are told at the gateway."""

    serves = True


def to(address: str, protocol: IpProtocol = IpProtocol.ANY, *ports: int) -> Destination:
    return Destination(IPv4Network(address), protocol, *ports)


def answered(vm: Vm, address: str) -> set[str]:
    kinds = (*truth.KINDS, *truth.PORTS)
    answers = vm.peer.probes([(kind, address, "") for kind in kinds])
    return {kind for kind, answer in zip(kinds, answers, strict=True) if answer}


EVERYTHING = {*truth.KINDS, *truth.PORTS}
OVERLAPPING = (to("0.0.0.0/0", IpProtocol.TCP, 5000, 6999), to(OUTSIDE, IpProtocol.TCP, 1, 65535))


@pytest.mark.parametrize(
    ("egress", "near", "far"),
    [
        (None, EVERYTHING, EVERYTHING),
        ((), set(), set()),
        ((to("0.0.0.0/0"),), EVERYTHING, EVERYTHING),
        ((to(OUTSIDE),), EVERYTHING, set()),
        ((to(OUTSIDE, IpProtocol.TCP, PORT, PORT),), {"tcp"}, set()),
        ((to("192.0.2.0/24", IpProtocol.UDP), to(FAR_OUTSIDE, IpProtocol.ICMP)), {"udp", "dns"}, {"icmp"}),
        (OVERLAPPING, {"tcp", "dns over tcp", "database"}, {"database"}),
    ],
    ids=["open", "closed", "all", "a host", "a port", "protocols", "ranges that overlap"],
)
async def test_a_running_vm_reaches_what_its_list_says(
    a_world: World, egress: tuple[Destination, ...] | None, near: set[str], far: set[str]
) -> None:
    vm = a_world.vms.get("vm") or await a_world.add_vm("vm", a_world.networks[0], "project_a")
    await a_world.networks[0].restrict(vm_key("vm_vm"), egress)
    assert (answered(vm, OUTSIDE), answered(vm, FAR_OUTSIDE)) == (near, far)
    assert a_world.peers["host"].probe("tcp", vm.ip), "checks and the edge get their answers"


async def test_what_a_list_closes_is_cut_where_it_is_open(a_world: World) -> None:
    network = a_world.networks[0]
    vm = await a_world.add_vm("talker", network, "project_a")
    assert vm.peer.probe("udp", OUTSIDE, ":4444")
    await network.restrict(vm_key("vm_talker"), ())
    assert not vm.peer.probe("udp", OUTSIDE, ":4444")
    await network.restrict(vm_key("vm_talker"), (to(OUTSIDE),))
    assert vm.peer.probe("udp", OUTSIDE, ":4444")


async def test_lists_that_were_taken_away_are_put_back(a_world: World) -> None:
    network, table = a_world.networks[0], a_world.names[0].table
    vm = await a_world.add_vm("victim", network, "project_a", egress=(to(FAR_OUTSIDE),))
    a_world.host.run("nft", "flush", "set", "inet", table, "egress_held")
    assert vm.peer.probe("udp", OUTSIDE), "it is open to all now"
    assert "egress_held" in await network.heal()
    assert not vm.peer.probe("udp", OUTSIDE)
    assert vm.peer.probe("udp", FAR_OUTSIDE)


def remembered(a_world: World) -> int:
    """Connections that the host remembers, of all VMs."""
    return int(a_world.host.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))


def flood(source: Namespace, kind: str, address: str, port: int = NOBODYS_PORT, own_address: str = "") -> None:
    source.run(sys.executable, "-c", FLOOD, kind, address, str(port), own_address)


async def refused(a_world: World, name: str) -> int:
    used = await a_world.networks[0].usage([vm_key(f"vm_{name}")])
    return sum(each.dropped.get("connections", 0) for each in used.values())


@pytest.mark.parametrize("kind", ["tcp", "udp"])
async def test_a_vm_that_floods_is_stopped_at_its_limit_and_others_are_served(a_world: World, kind: str) -> None:
    network, name = a_world.networks[0], f"flooding_{kind}"
    vm, other = await a_world.add_vm(name, network, "project_a"), await a_world.add_vm(f"{kind}2", network, "project_b")
    a_world.outside.run("iptables", "-I", "INPUT", "-p", kind, "--dport", str(NOBODYS_PORT), "-j", "DROP")
    before = remembered(a_world)
    flood(vm.namespace, kind, OUTSIDE)
    assert before + LIMIT / 2 < remembered(a_world) < before + 2 * LIMIT
    assert not vm.peer.probe("udp", OUTSIDE), "it has used up what it may have"
    assert answered(other, OUTSIDE) == EVERYTHING
    assert a_world.peers["host"].probe("tcp", vm.ip), "what comes to it is served"
    assert await refused(a_world, name) > LIMIT
    assert await refused(a_world, f"{kind}2") == 0
    await a_world.add_vm(f"{kind}3", network, "project_b")
    assert not vm.peer.probe("udp", OUTSIDE), "a load of the rules lets nobody begin from none"


async def test_questions_for_names_are_counted_too(a_world: World) -> None:
    vm = await a_world.add_vm("curious", a_world.networks[0], "project_a")
    before = remembered(a_world)
    flood(vm.namespace, "udp", a_world.gateways[0], DNS)
    assert before + LIMIT / 2 < remembered(a_world) < before + 2 * LIMIT
    assert await refused(a_world, "curious") > LIMIT


async def test_a_vm_that_is_flooded_from_elsewhere_takes_its_share_of_the_host_and_no_more(a_world: World) -> None:
    network = a_world.networks[0]
    vm, other = [await a_world.add_vm(name, network, "project_a") for name in ("wanted", "spared")]
    await network.connect([PEER])
    before = remembered(a_world)
    flood(a_world.outside, "udp", vm.ip, own_address=str(PEER.gateway))
    assert before + LIMIT / 2 < remembered(a_world) < before + 2 * LIMIT
    assert a_world.peers["outside"].probe("tcp", other.ip, str(PEER.gateway))
    assert not a_world.peers["outside"].probe("udp", vm.ip, str(PEER.gateway))
    assert vm.peer.probe("udp", FAR_OUTSIDE), "it opens connections itself all the same"
    await network.connect(())


async def test_a_published_port_lets_in_as_many_as_the_vm_behind_it_may_have(a_world: World) -> None:
    network, flooded, spared = a_world.networks[0], *OFFERED[:2]
    wanted, other = [await a_world.add_vm(name, network, "project_a") for name in ("door", "next_door")]
    behind = {flooded: (wanted, "door", NOBODYS_PORT), spared: (other, "next_door", PORT)}
    await network.publish(
        PublishedPort(Transport.UDP, number, (Answerer(vm_key(f"vm_{name}"), IPv4Address(vm.ip), port, taking=True),))
        for number, (vm, name, port) in behind.items()
    )
    before = remembered(a_world)
    flood(a_world.outside, "udp", HOST_OUTSIDE, flooded)
    assert before + LIMIT / 2 < remembered(a_world) < before + 2 * LIMIT
    assert a_world.peers["outside"].probe(f"udp:{spared}", HOST_OUTSIDE)
    await network.publish(())


async def test_connections_that_end_make_room(a_world: World) -> None:
    vm = await a_world.add_vm("busy", a_world.networks[0], "project_a")
    for _ in range(3):
        assert all(vm.peer.probes([("tcp", OUTSIDE, "")] * (LIMIT // 4)))


async def test_limits_that_others_take_away_are_put_back(a_world: World) -> None:
    network, table = a_world.networks[0], a_world.names[0].limits_table
    assert await network.heal() == ""
    a_world.host.run("nft", "delete", "table", "inet", table)
    assert table in await network.heal()
    assert await network.heal() == ""
    assert f"ct count over {LIMIT}" in a_world.host.run("nft", "list", "table", "inet", table)
