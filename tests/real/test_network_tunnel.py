"""Nodes on different networks, with a router between them that knows nothing of their VMs: what goes through the tunnel."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio

from plasmavmc.host import operations
from plasmavmc.host.addresses import node_network, prefix_from
from plasmavmc.host.helper import vxlan
from plasmavmc.host.operations import Reach, Underlay
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.types import NetworkSpec, vm_key
from tests.contract.host_rig import Namespace, RealHelper
from tests.real.network_world import Peer, Vm, Wire

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
PREFIX = prefix_from("a platform")
KINDS = ("tcp", "udp", "icmp")
NONE = ["", "", ""]
DEADLINE_S = 10.0
LONG = 400_000
"""Bytes; more than fit into one packet of any size."""


@dataclass(frozen=True, slots=True)
class Node:
    host: Namespace
    peer: Peer
    """The probing program on the host itself."""
    helper: RealHelper
    network: BridgeNetwork
    vm: Vm
    foreigner: Vm
    """Of another project."""
    told: operations.Peer
    """What other nodes are told of it."""

    def network_at(self, address: IPv4Address) -> BridgeNetwork:
        """The node's network after a restart, known by this address."""
        reach = Reach(Underlay.VXLAN, address)
        return BridgeNetwork(self.helper.host, self.helper.names, self.told.network, monotonic, reach=reach)

    def links(self) -> str:
        return self.host.run("ip", "-d", "link")


class Net:
    """Hosts with a network each, and a router between them."""

    def __init__(self, undo: AsyncExitStack) -> None:
        self._undo = undo
        self.wire = Wire()
        undo.callback(self.wire.stop)
        self.router = self._namespace()
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def _namespace(self) -> Namespace:
        made = Namespace()
        self._undo.callback(made.close)
        return made

    def host(self, number: int) -> Namespace:
        made, port = self._namespace(), f"port{number}"
        made.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", str(self.router.pid))
        for namespace, line in (
            (self.router, f"addr add 198.51.100.{16 * number + 1}/28 dev {port}"),
            (self.router, f"link set {port} up"),
            (made, f"addr add {address_of(number)}/28 dev eth0"),
            (made, "link set eth0 up"),
            (made, f"route add default via 198.51.100.{16 * number + 1}"),
        ):
            namespace.run("ip", *line.split())
        return made

    async def node(self, number: int, run_root: Path) -> Node:
        host, subnet = self.host(number), IPv4Network(f"10.64.{16 * number}.0/20")
        helper = RealHelper(host, run_root)
        self._undo.push_async_callback(helper.clean)
        network = BridgeNetwork(
            helper.host, helper.names, subnet, monotonic, reach=Reach(Underlay.VXLAN, IPv4Address(address_of(number)))
        )
        await network.configure_bridge()
        peer = Peer(host)
        self._undo.callback(peer.close)
        vm, foreigner = [await self._vm(network, f"vm_{number}_{project}", project) for project in (1, 2)]
        told = operations.Peer(
            subnet, IPv4Address(address_of(number)), node_network(PREFIX, subnet), underlay=Underlay.VXLAN
        )
        return Node(host, peer, helper, network, vm, foreigner, told)

    async def _vm(self, network: BridgeNetwork, name: str, project: int) -> Vm:
        spec = NetworkSpec(f"nic_{name}", f"project{project}", network_number=project, private_prefix=PREFIX)
        attachment = await network.setup_tap(vm_key(name), spec)
        await network.admit(vm_key(name))
        vm = Vm(attachment, self.wire)
        self._undo.callback(vm.close)
        return vm


@dataclass(frozen=True, slots=True)
class Nodes:
    one: Node
    two: Node
    stranger: Peer
    """On a host that is no node, with a tunnel of its own to node two."""
    stranger_host: Namespace


def address_of(number: int) -> str:
    return f"198.51.100.{16 * number + 2}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nodes]:
    run = tmp_path_factory.mktemp("tunnel")
    async with AsyncExitStack() as undo:
        net = Net(undo)
        one, two = [await net.node(number, run / f"run{number}") for number in (1, 2)]
        elsewhere = net.host(3)
        stranger = Peer(elsewhere)
        undo.callback(stranger.close)
        yield Nodes(one, two, stranger, elsewhere)


@pytest_asyncio.fixture(loop_scope="module")
async def joined(nodes: Nodes) -> Nodes:
    assert await nodes.one.network.connect([nodes.two.told]) == ()
    assert await nodes.two.network.connect([nodes.one.told]) == ()
    return nodes


def answers(peer: Peer, address: str, source: str = "") -> list[str]:
    """Whom the other end took us for, by each kind of packet."""
    return peer.probes([(kind, address, source) for kind in KINDS])


async def test_hosts_and_vms_reach_each_other_over_a_network_that_knows_nothing_of_them(joined: Nodes) -> None:
    one, two = joined.one, joined.two
    assert answers(one.peer, two.vm.ip)[:2] == [str(one.told.gateway)] * 2
    assert answers(one.vm.peer, two.vm.ipv6)[:2] == [one.vm.ipv6] * 2
    assert all(answers(two.vm.peer, one.vm.ipv6))


async def test_what_is_closed_stays_closed_through_the_tunnel(joined: Nodes) -> None:
    assert answers(joined.one.vm.peer, joined.two.foreigner.ipv6) == NONE
    assert answers(joined.one.vm.peer, joined.two.vm.ip) == NONE
    assert answers(joined.one.vm.peer, str(joined.two.told.gateway)) == NONE


async def test_packets_that_are_too_long_for_the_tunnel_find_their_size(joined: Nodes) -> None:
    """A VM's own link carries 1,500 bytes, and the tunnel fewer."""
    send = f"import socket; c = socket.create_connection(({joined.two.vm.ipv6!r}, 7001), 5); c.sendall(b'x' * {LONG})"
    take = (
        "import socket; s = socket.create_server(('::', 7001), family=socket.AF_INET6); print('up', flush=True)\n"
        "c, _ = s.accept(); print(sum(iter(lambda: len(c.recv(65536)), 0)))"
    )
    command = [*joined.two.vm.namespace.enter, "python3", "-c", take]
    taking = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert taking.stdout is not None
    assert await taking.stdout.readline() == b"up\n"
    sending = await asyncio.create_subprocess_exec(*joined.one.vm.namespace.enter, "python3", "-c", send)
    async with asyncio.timeout(DEADLINE_S):
        assert await sending.wait() == 0
        assert int(await taking.stdout.readline()) == LONG
        await taking.wait()


async def test_a_stranger_with_a_tunnel_of_the_same_number_gets_nothing_in(joined: Nodes) -> None:
    """It claims to be node one in all but the address of its host."""
    one, two = joined.one, joined.two
    pretend_to_be(one, joined.stranger_host, two, str(two.told.via))
    before = two.vm.peer.seen()
    joined.stranger.ask({"send": [two.vm.ip, str(one.told.gateway), "from a stranger"]})
    assert all(answers(one.peer, two.vm.ip))
    assert "from a stranger" not in two.vm.peer.seen()[len(before) :]


@pytest.mark.parametrize("size", [10, 1460], ids=["whole", "in fragments"])
@pytest.mark.parametrize("end", ["198.51.100.34", "198.51.100.41"], ids=["known to its node", "another of its host"])
async def test_a_guest_with_a_tunnel_of_its_own_speaks_in_its_nodes_name_to_nobody(
    joined: Nodes, end: str, size: int
) -> None:
    """To the other host its datagrams come from the address of a node, whose they are by source NAT."""
    one, two, guest = joined.one, joined.two, joined.one.foreigner
    two.host.run("ip", "addr", "replace", f"{end}/28", "dev", "eth0")
    pretend_to_be(one, guest.namespace, two, end)
    before = two.vm.peer.seen()
    try:
        guest.peer.ask({"send": [two.vm.ip, str(one.told.gateway), "from a guest".ljust(size, ".")]})
        assert all(answers(one.peer, two.vm.ip))
        assert not [said for said in two.vm.peer.seen()[len(before) :] if said.startswith("from a guest")]
    finally:
        guest.namespace.run("ip", "link", "del", "vx")


def pretend_to_be(node: Node, namespace: Namespace, other: Node, end: str) -> None:
    """Make a tunnel from a namespace to another node's host, at this address, with what datagrams of `node` carry."""
    number = vxlan.number_of([other.told])
    macs = {
        line.split()[1] for line in other.links().splitlines() if "link/ether" in line and after_tunnel(other, line)
    }
    (mac,) = macs
    for line in (
        f"link add vx mtu 9000 type vxlan id {number} dstport {vxlan.PORT} nolearning",
        f"addr add {node.told.gateway}/32 dev vx",
        "link set vx up",
        f"route add {other.vm.ip} dev vx src {node.told.gateway}",
        f"neigh add {other.vm.ip} lladdr {mac} dev vx nud permanent",
    ):
        namespace.run("ip", *line.split())
    namespace.run("bridge", "fdb", "append", mac, "dev", "vx", "dst", end)


def after_tunnel(node: Node, line: str) -> bool:
    """Whether a line of `ip -d link` belongs to the tunnel's device."""
    lines = node.links().splitlines()
    return node.helper.names.tunnel in lines[lines.index(line) - 1]


async def test_a_node_that_moves_to_another_address_is_reached_there(joined: Nodes) -> None:
    one, two = joined.one, joined.two
    moved = replace(two.told, via=IPv4Address("198.51.100.40"))
    two.host.run("ip", "addr", "add", f"{moved.via}/28", "dev", "eth0")
    again = two.network_at(moved.via)
    await again.connect([one.told])
    await again.configure_bridge()
    assert await one.network.connect([moved]) == ()
    fdb = one.host.run("bridge", "fdb", "show", "dev", one.helper.names.tunnel)
    assert str(moved.via) in fdb
    assert str(two.told.via) not in fdb
    assert all(answers(one.peer, two.vm.ip))


async def test_the_tunnel_outlives_a_restart_and_ends_with_the_installation(joined: Nodes) -> None:
    two = joined.two
    await two.helper.host.sweep(operations.Keep({}))
    assert two.helper.names.tunnel in two.links()
    again = BridgeNetwork(two.helper.host, two.helper.names, two.told.network, monotonic)
    await again.configure_bridge()
    assert two.helper.names.tunnel not in two.links()
