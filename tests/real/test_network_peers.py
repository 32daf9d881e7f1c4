"""Nodes on one underlay: what each may open to the VMs of the others, held against real packets.

The underlay is a bridge in a namespace of its own, on which a stranger sits too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio

from plasmavmc.host import operations
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.types import NetworkSpec, vm_key
from tests.contract.host_rig import Namespace, RealHelper
from tests.real.network_world import Peer, Vm, Wire

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
KINDS = ("tcp", "udp", "icmp")
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
    told: operations.Peer
    """What other nodes are told of it."""

    @property
    def gateway(self) -> str:
        return str(self.told.gateway)

    def routes(self) -> str:
        return self.host.run("ip", "route")


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

    async def node(self, number: int, run_root: Path, wire: Wire) -> Node:
        host, network = self.host(number), IPv4Network(f"10.64.{16 * number}.0/20")
        helper = RealHelper(host, run_root)
        self._undo.push_async_callback(helper.clean)
        bridge = BridgeNetwork(helper.host, helper.names, network, monotonic)
        await bridge.configure_bridge()
        key = vm_key(f"vm_{number}")
        attachment = await bridge.setup_tap(key, NetworkSpec(f"nic_{number}", "project"))
        await bridge.admit(key)
        vm, peer = Vm(attachment, wire), Peer(host)
        self._undo.callback(vm.close)
        self._undo.callback(peer.close)
        told = operations.Peer(network, IPv4Address(f"192.0.2.{number}"))
        return Node(host, peer, helper, bridge, vm, told)


@dataclass(frozen=True, slots=True)
class Nodes:
    one: Node
    two: Node
    stranger: Peer
    """On a host of the underlay that is no node, with a route to node two's VMs."""


@asynccontextmanager
async def nodes_in(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as undo:
        wire = Wire()
        undo.callback(wire.stop)
        underlay = Underlay(undo)
        one, two = [await underlay.node(number, tmp_path / f"run{number}", wire) for number in (1, 2)]
        elsewhere = underlay.host(3)
        elsewhere.run("ip", "route", "add", str(two.told.network), "via", str(two.told.via))
        stranger = Peer(elsewhere)
        undo.callback(stranger.close)
        yield Nodes(one, two, stranger)


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


async def test_vms_reach_neither_vms_nor_gateways_of_other_nodes(joined: Nodes) -> None:
    for place in (joined.two.vm.ip, joined.two.gateway):
        assert answers(joined.one.vm.peer, place) == NONE


async def test_a_host_that_is_no_peer_reaches_no_vm(joined: Nodes) -> None:
    assert answers(joined.stranger, joined.two.vm.ip) == NONE


async def test_a_vm_still_has_the_way_out(joined: Nodes) -> None:
    assert answers(joined.one.vm.peer, str(joined.two.told.via))[:2] == [str(joined.one.told.via)] * 2


async def test_a_peer_without_a_way_to_it_is_told_and_does_not_keep_the_others_away(joined: Nodes) -> None:
    assert await joined.one.network.connect([UNREACHABLE, joined.two.told]) == (UNREACHABLE,)
    assert all(answers(joined.one.peer, joined.two.vm.ip))


async def test_a_restart_that_knows_its_peers_never_shuts_them_out(joined: Nodes) -> None:
    two = joined.two
    again = BridgeNetwork(two.helper.host, two.helper.names, two.told.network, monotonic)
    await again.connect([joined.one.told])
    await again.configure_bridge()
    lease = two.vm.attachment.lease
    await again.adopt(vm_key("vm_2"), NetworkSpec("nic_2", "project"), lease.ipv4)
    await again.settle()
    assert all(answers(joined.one.peer, two.vm.ip))


async def test_a_peer_that_left_is_shut_out_and_its_route_is_gone(joined: Nodes) -> None:
    assert await joined.two.network.connect([]) == ()
    assert str(joined.one.told.network) not in joined.two.routes()
    assert answers(joined.one.peer, joined.two.vm.ip) == NONE
    assert str(joined.two.told.network) in joined.one.routes()


async def test_routes_of_others_are_left_alone(joined: Nodes) -> None:
    foreign = "10.64.112.0/20 via 192.0.2.3 dev eth0 proto static"
    joined.one.host.run("ip", "route", "add", *foreign.split())
    await joined.one.network.connect([])
    assert "10.64.112.0/20 via 192.0.2.3" in joined.one.routes()
    joined.one.host.run("ip", "route", "del", "10.64.112.0/20")
