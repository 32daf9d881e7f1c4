"""Nodes on one underlay: what each may open to the VMs of the others, held against real packets.

The underlay is a bridge in a namespace of its own, on which a stranger sits too.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio

from plasmavmc.host import addresses, operations
from plasmavmc.host.ports import PublishSite
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.types import NetworkSpec, vm_key
from tests.contract.host_rig import Namespace, RealHelper
from tests.real import network_truth as truth
from tests.real.network_world import Peer, Vm, Wire

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
KINDS = ("tcp", "udp", "icmp")
PREFIX = addresses.prefix_from("the platform of these nodes")
PROJECT, OTHER_PROJECT = 7, 8
"""Network numbers."""
HOST_TWO, STRANGER, ELSEWHERE = "fe80::73:7767:c000:202", "fd00:bad::1", "192.0.2.3"
UNREACHABLE = operations.Peer(IPv4Network("10.64.48.0/20"), IPv4Address("203.0.113.9"))


@dataclass(frozen=True, slots=True)
class Node:
    """A host with its bridge and one VM of the same project as everybody's."""

    host: Namespace
    peer: Peer
    """The probing program on the host itself."""
    helper: RealHelper
    network: BridgeNetwork
    vm: Vm
    other: Vm
    """Of another project."""
    told: operations.Peer
    """What other nodes are told of it."""

    @property
    def gateway(self) -> str:
        return str(self.told.gateway)

    def routes(self) -> str:
        return self.host.run("ip", "route")


def nic(number: int, project: str = "project", network: int = PROJECT) -> NetworkSpec:
    """The interface of that project's VM on node `number`."""
    return NetworkSpec(f"nic_{project}_{number}", project, network_number=network, private_prefix=PREFIX)


class Underlay:
    """A switch with hosts on it."""

    def __init__(self, undo: AsyncExitStack) -> None:
        self._undo = undo
        self.switch = self._namespace()
        self.switch.run("ip", "link", "add", "switch", "type", "bridge")
        self.switch.run("ip", "link", "set", "switch", "up")

    def _namespace(self) -> Namespace:
        made = Namespace()
        self._undo.callback(made.close)
        return made

    def host(self, number: int) -> Namespace:
        made, port = self._namespace(), f"port{number}"
        made.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", str(self.switch.pid))
        made.run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
        made.run("ip", "link", "set", "eth0", "up")
        self.switch.run("ip", "link", "set", port, "master", "switch", "up")
        return made

    async def node(self, number: int, run_root: Path, wire: Wire, publish: range = range(0)) -> Node:
        host, network = self.host(number), IPv4Network(f"10.64.{16 * number}.0/20")
        helper = RealHelper(host, run_root, publish=publish)
        self._undo.push_async_callback(helper.clean)
        bridge = BridgeNetwork(helper.host, helper.names, network, monotonic, publish=PublishSite(publish))
        await bridge.configure_bridge()
        vm = await self._vm(bridge, nic(number), wire)
        other = await self._vm(bridge, nic(number, "other", OTHER_PROJECT), wire)
        peer = Peer(host)
        self._undo.callback(peer.close)
        private = addresses.node_network(PREFIX, network)
        told = operations.Peer(network, IPv4Address(f"192.0.2.{number}"), private)
        return Node(host, peer, helper, bridge, vm, other, told)

    async def _vm(self, bridge: BridgeNetwork, spec: NetworkSpec, wire: Wire) -> Vm:
        key = vm_key(spec.id)
        attachment = await bridge.setup_tap(key, spec)
        await bridge.admit(key)
        vm = Vm(attachment, wire)
        self._undo.callback(vm.close)
        return vm


@dataclass(frozen=True, slots=True)
class Nodes:
    one: Node
    two: Node
    stranger: Peer
    """On a host of the underlay that is no node, with routes to node two's VMs."""
    strangers: Namespace


@asynccontextmanager
async def nodes_in(tmp_path: Path, publish: range = range(0)) -> AsyncIterator[Nodes]:
    """`publish`: ports that both of them let VMs answer at."""
    async with AsyncExitStack() as undo:
        wire = Wire()
        undo.callback(wire.stop)
        underlay = Underlay(undo)
        one, two = [await underlay.node(number, tmp_path / f"run{number}", wire, publish) for number in (1, 2)]
        elsewhere = underlay.host(3)
        elsewhere.run("ip", "route", "add", str(two.told.network), "via", str(two.told.via))
        elsewhere.run("ip", "route", "add", str(two.told.private), "via", HOST_TWO, "dev", "eth0")
        elsewhere.run("ip", "addr", "add", f"{STRANGER}/64", "dev", "eth0", "nodad")
        stranger = Peer(elsewhere)
        undo.callback(stranger.close)
        yield Nodes(one, two, stranger, elsewhere)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nodes]:
    async with nodes_in(tmp_path_factory.mktemp("peers")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def joined(nodes: Nodes) -> Nodes:
    assert await nodes.one.network.connect([nodes.two.told]) == ()
    assert await nodes.two.network.connect([nodes.one.told]) == ()
    return nodes


def answers(peer: Peer, address: str) -> list[str]:
    """Whom the other end took us for, by each kind of packet."""
    return peer.probes([(kind, address, "") for kind in KINDS])


NONE = ["", "", ""]


async def test_a_node_opens_connections_to_its_peers_vms_and_speaks_as_its_gateway(joined: Nodes) -> None:
    assert answers(joined.one.peer, joined.two.vm.ip)[:2] == [joined.one.gateway] * 2
    assert answers(joined.two.peer, joined.one.vm.ip)[:2] == [joined.two.gateway] * 2
    assert all(answers(joined.one.peer, joined.two.vm.ip))


@pytest.mark.parametrize("family", [4, 6])
async def test_the_truth_table_holds_between_nodes(joined: Nodes, family: int) -> None:
    one, two = joined.one, joined.two
    ends = {
        ("VM", truth.OWN_ELSEWHERE): [(one.vm, two.vm), (two.vm, one.vm), (one.other, two.other)],
        ("VM", truth.OTHER_PROJECT): [(one.vm, one.other), (one.other, one.vm)],
        ("VM", truth.OTHER_PROJECT_ELSEWHERE): [(one.vm, two.other), (two.vm, one.other), (one.other, two.vm)],
    }
    for row, pairs in ends.items():
        for source, target in pairs:
            found = answers(source.peer, target.ipv6 if family == 6 else target.ip)
            assert all(found) if truth.may(*row, family) else found == NONE, (row, found)


async def test_vms_reach_no_gateway_of_other_nodes(joined: Nodes) -> None:
    assert answers(joined.one.vm.peer, joined.two.gateway) == NONE


async def test_a_vm_of_another_node_is_known_by_its_own_private_address(joined: Nodes) -> None:
    assert joined.one.vm.peer.probe("tcp", joined.two.vm.ipv6) == joined.one.vm.ipv6


async def test_a_host_that_is_no_peer_reaches_no_vm(joined: Nodes) -> None:
    assert answers(joined.stranger, joined.two.vm.ip) == NONE
    assert answers(joined.stranger, joined.two.vm.ipv6) == NONE


async def test_nobody_speaks_from_elsewhere_with_an_address_of_this_node(joined: Nodes) -> None:
    """Such a packet names the right network; a true one follows, whose arrival shows that the false had its chance."""
    two = joined.two
    claimed = addresses.private_address(PREFIX, two.told.network, PROJECT, two.told.network[77])
    joined.strangers.run("ip", "addr", "add", f"{claimed}/128", "dev", "lo", "nodad")
    joined.stranger.ask({"send": [two.vm.ipv6, str(claimed), "forged"]})
    assert joined.one.vm.peer.probe("udp", two.vm.ipv6)
    assert "forged" not in two.vm.peer.seen()


async def test_a_vm_still_has_the_way_out(joined: Nodes) -> None:
    assert answers(joined.one.vm.peer, ELSEWHERE)[:2] == [str(joined.one.told.via)] * 2


async def test_vms_reach_no_host_of_other_nodes_which_would_take_them_for_their_own_host(joined: Nodes) -> None:
    """A host answers its peers' hosts, and to it VMs have the address of theirs."""
    assert not truth.may("VM", truth.ANOTHER_NODE, 4)
    assert not truth.may("VM", truth.ANOTHER_NODE, 6)
    assert all(answers(joined.one.peer, str(joined.two.told.via)))
    assert answers(joined.one.vm.peer, str(joined.two.told.via)) == NONE
    assert answers(joined.one.vm.peer, HOST_TWO + "%eth0") == NONE


SPRAY = """
import socket, sys
from ipaddress import IPv6Address
talk, first = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), int(IPv6Address(sys.argv[1]))
for number in range(1, 601):
    talk.sendto(b"anybody", (str(IPv6Address(first ^ number << 12)), 7000))
"""


@pytest.mark.parametrize("where", ["its own node", "another node"])
async def test_a_host_asks_for_nobody_who_is_not_there_however_many_a_vm_names(joined: Nodes, where: str) -> None:
    """All of these are of its own network. What a host remembers of neighbours is bounded, for all of its links together."""
    one, two = joined.one, joined.two
    node = one if where == "its own node" else two
    before = remembered(node)
    one.vm.namespace.run(sys.executable, "-c", SPRAY, node.vm.ipv6)
    assert one.vm.peer.probe("udp", two.vm.ipv6) == one.vm.ipv6, "what was sent before has come through"
    assert remembered(node) == before


def remembered(node: Node) -> set[str]:
    """Of its own addresses of VMs, those that a host has neighbours by."""
    private, lines = node.told.private, node.host.run("ip", "-6", "neigh", "show", "nud", "all").splitlines()
    assert private is not None
    return {line for line in lines if IPv6Address(line.split()[0]) in private}


async def test_a_peer_without_a_way_to_it_is_told_and_does_not_keep_the_others_away(joined: Nodes) -> None:
    assert await joined.one.network.connect([UNREACHABLE, joined.two.told]) == (UNREACHABLE,)
    assert all(answers(joined.one.peer, joined.two.vm.ip))


async def test_a_restart_that_knows_its_peers_never_shuts_them_out(joined: Nodes) -> None:
    two = joined.two
    again = BridgeNetwork(two.helper.host, two.helper.names, two.told.network, monotonic)
    await again.connect([joined.one.told])
    await again.configure_bridge()
    lease = two.vm.attachment.lease
    await again.adopt(vm_key("nic_project_2"), nic(2), lease.ipv4)
    other = two.other.attachment.lease.ipv4
    await again.adopt(vm_key("nic_other_2"), nic(2, "other", OTHER_PROJECT), other)
    await again.settle()
    assert all(answers(joined.one.peer, two.vm.ip))
    assert all(answers(joined.one.vm.peer, two.vm.ipv6))


async def test_a_peer_that_left_is_shut_out_and_its_route_is_gone(joined: Nodes) -> None:
    assert await joined.two.network.connect([]) == ()
    assert str(joined.one.told.network) not in joined.two.routes()
    assert answers(joined.one.peer, joined.two.vm.ip) == NONE
    assert answers(joined.one.vm.peer, joined.two.vm.ipv6) == NONE
    assert str(joined.two.told.network) in joined.one.routes()
    assert str(joined.one.told.private) not in joined.two.host.run("ip", "-6", "route")
    assert HOST_TWO not in joined.two.host.run("ip", "-6", "addr")


async def test_routes_of_others_are_left_alone(joined: Nodes) -> None:
    foreign = "10.64.112.0/20 via 192.0.2.3 dev eth0 proto static"
    joined.one.host.run("ip", "route", "add", *foreign.split())
    await joined.one.network.connect([])
    assert "10.64.112.0/20 via 192.0.2.3" in joined.one.routes()
    joined.one.host.run("ip", "route", "del", "10.64.112.0/20")
