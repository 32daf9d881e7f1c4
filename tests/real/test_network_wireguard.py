"""Nodes on different networks that are reached by WireGuard: what goes through, what does not, what is seen on the way, and
that nothing is lost when keys are exchanged."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio

from plasmavmc.errors import HostError
from plasmavmc.host import operations
from plasmavmc.host.addresses import node_network, prefix_from
from plasmavmc.host.operations import Reach, Underlay
from plasmavmc.host.processes import ProcessId, argv_of, processes, uids_of
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.types import NetworkSpec, vm_key
from tests.contract.host_rig import UIDS, Namespace, RealHelper, eventually
from tests.real.network_world import Peer, Vm
from tests.real.test_network_tunnel import Net, address_of

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
PREFIX = prefix_from("a platform")
KINDS = ("tcp", "udp", "icmp")
PORT = 7084
DEADLINE_S = 20.0
LONG = 400_000
"""Bytes; more than fit into one packet of any size."""
CANARY = "a canary in clear"
PINGS, PING_EVERY_S = 200, 0.01


@dataclass(slots=True)
class Node:
    number: int
    host: Namespace
    peer: Peer
    """The probing program on the host itself."""
    helper: RealHelper
    network: BridgeNetwork
    vms: list[Vm] = field(default_factory=list)
    """Of the first project and of the other one."""

    @property
    def vm(self) -> Vm:
        return self.vms[0]

    @property
    def foreigner(self) -> Vm:
        return self.vms[1]

    @property
    def told(self) -> operations.Peer:
        """What other nodes are told of it."""
        subnet = subnet_of(self.number)
        return operations.Peer(
            subnet,
            IPv4Address(address_of(self.number)),
            node_network(PREFIX, subnet),
            underlay=Underlay.WIREGUARD,
            keys=self.network.keys,
            port=PORT,
        )

    def devices(self) -> list[str]:
        return [self.helper.names.encrypted(slot) for slot in (0, 1)]

    def programs(self) -> dict[str, ProcessId]:
        """What encrypts here, by device."""
        found = {each.id: argv_of(each.id.pid) for each in processes()}
        return {argv[-1]: id_ for id_, argv in found.items() if argv[-1:] and argv[-1] in self.devices()}

    def device_to(self, other: Node) -> str:
        """By which its VMs reach those of another node."""
        return self.host.run("ip", "-6", "route", "get", other.vm.ipv6).split(" dev ")[1].split()[0]


def subnet_of(number: int) -> IPv4Network:
    return IPv4Network(f"10.64.{16 * number}.0/20")


class EncryptedNet(Net):
    """Hosts with a network each, and a router between them, which hears all."""

    async def encrypting_node(self, number: int, run_root: Path) -> Node:
        host = self.host(number)
        helper = RealHelper(host, run_root, key_settle_s=0.0)
        self._undo.push_async_callback(helper.clean)
        peer = Peer(host)
        self._undo.callback(peer.close)
        node = Node(number, host, peer, helper, network_of(number, helper))
        await node.network.configure_bridge()
        for project in (1, 2):
            spec = nic(number, project)
            attachment = await node.network.setup_tap(vm_key(spec.id), spec)
            await node.network.admit(vm_key(spec.id))
            node.vms.append(Vm(attachment, self.wire))
            self._undo.callback(node.vms[-1].close)
        return node


def nic(number: int, project: int) -> NetworkSpec:
    return NetworkSpec(f"nic_{number}_{project}", f"project{project}", network_number=project, private_prefix=PREFIX)


def network_of(number: int, helper: RealHelper) -> BridgeNetwork:
    reach = Reach(Underlay.WIREGUARD, IPv4Address(address_of(number)), PORT)
    return BridgeNetwork(helper.host, helper.names, subnet_of(number), monotonic, reach=reach)


@dataclass(frozen=True, slots=True)
class Nodes:
    one: Node
    two: Node
    router: Namespace

    async def meet(self, step: int) -> None:
        """Each is told of the other, as often as it takes them to agree on keys."""
        for _ in range(2):
            assert await self.one.network.connect([self.two.told], step) == ()
            assert await self.two.network.connect([self.one.told], step) == ()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nodes]:
    run = tmp_path_factory.mktemp("wg")
    async with AsyncExitStack() as undo:
        net = EncryptedNet(undo)
        one, two = [await net.encrypting_node(number, run / f"run{number}") for number in (1, 2)]
        yield Nodes(one, two, net.router)


@pytest_asyncio.fixture(loop_scope="module")
async def joined(nodes: Nodes) -> Nodes:
    await nodes.meet(step=0)
    await eventually(lambda: all(answers(nodes.one.vm.peer, nodes.two.vm.ipv6)), "the tunnel stands", DEADLINE_S)
    return nodes


def answers(peer: Peer, address: str, source: str = "") -> list[str]:
    """Whom the other end took us for, by each kind of packet."""
    return peer.probes([(kind, address, source) for kind in KINDS])


async def test_hosts_and_vms_reach_each_other_and_what_is_closed_stays_closed(joined: Nodes) -> None:
    one, two = joined.one, joined.two
    assert answers(one.peer, two.vm.ip)[:2] == [str(one.told.gateway)] * 2
    assert answers(one.vm.peer, two.vm.ipv6)[:2] == [one.vm.ipv6] * 2
    assert all(answers(two.vm.peer, one.vm.ipv6))
    for closed in (two.foreigner.ipv6, two.vm.ip, str(two.told.gateway)):
        assert not one.vm.peer.probe("udp", closed)


async def test_packets_that_are_too_long_for_the_tunnel_find_their_size(joined: Nodes) -> None:
    """A VM's own link carries 1,500 bytes, and the tunnel fewer."""
    send = f"import socket; c = socket.create_connection(({joined.two.vm.ipv6!r}, 7001), 5); c.sendall(b'x' * {LONG})"
    take = (
        "import socket; s = socket.create_server(('::', 7001), family=socket.AF_INET6); print('up', flush=True)\n"
        "c, _ = s.accept(); print(sum(iter(lambda: len(c.recv(65536)), 0)))"
    )
    taking = await started(joined.two.vm, take)
    sending = await asyncio.create_subprocess_exec(*joined.one.vm.namespace.enter, sys.executable, "-c", send)
    async with asyncio.timeout(DEADLINE_S):
        assert await sending.wait() == 0
        assert await ended(taking) == LONG


async def started(where: Vm | Node, program: str, *words: str) -> asyncio.subprocess.Process:
    """A program in a VM or on a host that has said that it is up."""
    command = [
        *(where.host if isinstance(where, Node) else where.namespace).enter,
        sys.executable,
        "-c",
        program,
        *words,
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    return process


async def ended(process: asyncio.subprocess.Process) -> int:
    """The number that a program ends with."""
    assert process.stdout is not None
    said = int(await process.stdout.readline())
    await process.wait()
    return said


_SNIFF = """
import socket, sys, time
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
heard.settimeout(0.2)
print("up", flush=True)
canary, seen, last = sys.argv[1].encode(), 0, sys.argv[2].encode()
while True:
    try:
        frame = heard.recv(70000)
    except TimeoutError:
        continue
    seen += canary in frame
    if last in frame:
        break
print(seen)
"""


async def test_who_hears_what_is_between_the_hosts_reads_nothing_of_it(joined: Nodes) -> None:
    """What goes in clear beside the tunnel shows that the listener has ears."""
    command = [*joined.router.enter, sys.executable, "-c", _SNIFF, CANARY, "the end"]
    sniffing = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert sniffing.stdout is not None
    assert await sniffing.stdout.readline() == b"up\n"
    for source, target in ((joined.one.vm, joined.two.vm), (joined.two.vm, joined.one.vm)):
        before = len(target.peer.seen())
        source.peer.ask({"send": [target.ipv6, "", CANARY]})
        await eventually(lambda peer=target.peer, n=before: CANARY in peer.seen()[n:], "it has come through")
    joined.one.peer.ask({"send": [joined.two.vm.ip, "", CANARY]})
    joined.one.peer.ask({"send": [address_of(2), "", "the end"]})
    async with asyncio.timeout(DEADLINE_S):
        assert await ended(sniffing) == 0


async def test_a_node_speaks_as_no_other_through_its_own_tunnel(joined: Nodes) -> None:
    """Node three is a peer, so the firewall would let it in; only its key tells who it is."""
    one, two = joined.one, joined.two
    third = replace(two.told, network=subnet_of(3), via=IPv4Address(address_of(3)), keys=(), port=0)
    third = replace(third, private=node_network(PREFIX, third.network))
    await one.network.connect([two.told, third])
    two.host.run("ip", "addr", "add", f"{third.gateway}/32", "dev", "lo")
    before = len(one.vm.peer.seen())
    two.peer.ask({"send": [one.vm.ip, str(third.gateway), "as another node"]})
    two.peer.ask({"send": [one.vm.ip, str(two.told.gateway), "as itself"]})
    await eventually(lambda: "as itself" in one.vm.peer.seen()[before:], "what is true arrives")
    assert "as another node" not in one.vm.peer.seen()[before:]


async def test_who_is_on_the_way_speaks_as_no_node(joined: Nodes) -> None:
    """In clear, past the tunnel, from the router; what comes through it shows that it had its chance."""
    one, two = joined.one, joined.two
    for line in (
        f"addr add {two.told.gateway}/32 dev lo",
        f"route replace {one.told.network} via {address_of(1)}",
        f"addr add {two.vm.ipv6}/128 dev lo",
    ):
        joined.router.run("ip", *line.split())
    stranger = Peer(joined.router)
    try:
        before = len(one.vm.peer.seen())
        stranger.ask({"send": [one.vm.ip, str(two.told.gateway), "in clear"]})
        assert all(answers(two.peer, one.vm.ip))
        assert "in clear" not in one.vm.peer.seen()[before:]
    finally:
        stranger.close()


_FLOOD = """
import socket, sys, time
port, target, count, pause = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
talk = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
talk.bind(("::", 0 if target else port))
print("up", flush=True)
if target:
    for number in range(count):
        talk.sendto(str(number).encode(), (target, port))
        time.sleep(pause)
    for _ in range(10):
        talk.sendto(b"end", (target, port))
    print(count)
else:
    seen = set()
    while (word := talk.recv(100)) != b"end":
        seen.add(word)
    print(len(seen))
"""


async def test_keys_are_exchanged_under_traffic_and_nothing_is_lost(joined: Nodes) -> None:
    one, two = joined.one, joined.two
    words = (str(PINGS), str(PING_EVERY_S))
    floods = [  # from VM to VM, and from the host, as an edge there does, by IPv4
        (await started(two.vm, _FLOOD, "7002", "", *words), await started(one.vm, _FLOOD, "7002", two.vm.ipv6, *words)),
        (
            await started(two.vm, _FLOOD, "7003", "", *words),
            await started(one, _FLOOD, "7003", f"::ffff:{two.vm.ip}", *words),
        ),
    ]
    keys = [two.network.keys]
    for step in (1, 2, 3, 4):
        await joined.meet(step)
        keys.append(two.network.keys)
        await over_to(joined, step)
    async with asyncio.timeout(DEADLINE_S):
        for taking, sending in floods:
            assert await ended(sending) == PINGS
            assert await ended(taking) == PINGS
    changed = [tuple(old != new for old, new in zip(*pair, strict=True)) for pair in pairwise(keys)]
    assert changed == [(False, True), (False, False), (True, False), (False, False)]


async def over_to(nodes: Nodes, step: int) -> None:
    """Return when both nodes send by the slot of that step."""
    deadline = monotonic() + DEADLINE_S
    for node, other in ((nodes.one, nodes.two), (nodes.two, nodes.one)):
        while node.device_to(other) != node.devices()[step // 2 % 2]:
            assert monotonic() < deadline, f"node {node.number} has not changed over for step {step}"
            await asyncio.sleep(0.05)
            await node.network.heal_tunnels()


async def test_a_program_that_is_killed_is_there_again_with_its_keys(joined: Nodes) -> None:
    two = joined.two
    before, keys = two.programs(), two.network.keys
    assert {uids_of(each.pid).issubset(UIDS) for each in before.values()} == {True}
    for process in before.values():
        os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: not two.programs(), "it has ended")
    assert not joined.one.vm.peer.probe("udp", two.vm.ipv6)
    await two.network.heal_tunnels()
    assert two.programs().keys() == before.keys()
    assert two.network.keys == keys
    await eventually(lambda: all(answers(joined.one.vm.peer, two.vm.ipv6)), "the tunnel stands", DEADLINE_S)


@pytest.mark.nightly
async def test_one_that_hangs_is_ended_and_started_anew(joined: Nodes) -> None:
    two = joined.two
    before = two.programs()
    os.kill(before[two.devices()[0]].pid, signal.SIGSTOP)
    with pytest.raises(HostError, match="wireguard-go does not answer"):
        await two.network.heal_tunnels()
    await two.network.heal_tunnels()
    assert two.programs()[two.devices()[0]] != before[two.devices()[0]]
    await eventually(lambda: all(answers(joined.one.vm.peer, two.vm.ipv6)), "the tunnel stands", DEADLINE_S)


async def test_the_tunnel_outlives_the_helper(joined: Nodes) -> None:
    two = joined.two
    programs, keys = two.programs(), two.network.keys
    two.helper.restart()
    assert all(answers(joined.one.vm.peer, two.vm.ipv6))
    again = network_of(2, two.helper)
    await again.connect([joined.one.told], 4)
    await again.configure_bridge()
    for number, vm in enumerate(two.vms, 1):
        await again.adopt(vm_key(f"nic_2_{number}"), nic(2, number), vm.attachment.lease.ipv4)
    await again.settle()
    two.network = again
    assert (two.programs(), again.keys) == (programs, keys)
    assert all(answers(joined.one.vm.peer, two.vm.ipv6))


async def test_a_node_without_a_key_is_told_and_nothing_goes_there_in_clear(joined: Nodes) -> None:
    one, two = joined.one, joined.two
    in_clear = replace(two.told, underlay=Underlay.PLAIN, keys=(), port=0)
    assert await one.network.connect([in_clear]) == (in_clear,)
    assert str(in_clear.network) not in one.host.run("ip", "route")
    assert not one.peer.probe("udp", two.vm.ip)
    await joined.meet(step=4)


async def test_a_sweep_leaves_the_tunnel(joined: Nodes) -> None:
    """It takes the VMs, which nobody wants to keep here."""
    before = joined.two.programs()
    await joined.two.helper.host.sweep(operations.Keep({}))
    assert joined.two.programs() == before
    assert set(joined.two.devices()) <= joined.two.host.links()


_HOLD = """
import socket, time
taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
taken.bind(("", 7094))
print("up", flush=True)
time.sleep(60)
"""


async def test_a_port_that_somebody_has_is_told_and_what_ended_leaves_nothing(nodes: Nodes, tmp_path: Path) -> None:
    one = nodes.one
    holder = await asyncio.create_subprocess_exec(*one.host.enter, sys.executable, "-c", _HOLD, stdout=subprocess.PIPE)
    other = RealHelper(one.host, tmp_path / "run")
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"up\n"
        subnet = IPv4Network("10.64.112.0/20")
        network = BridgeNetwork(other.host, other.names, subnet, monotonic, reach=Reach(Underlay.WIREGUARD, port=7093))
        with pytest.raises(HostError, match="the UDP port 7094 for WireGuard is in use"):
            await network.configure_bridge()
        assert [link for link in one.host.links() if link.startswith(other.names.encrypted(0))]
        await other.host.dismantle()
        assert not [link for link in one.host.links() if link.startswith(other.names.link_prefix)]
        assert not [each for each in processes() if other.names.encrypted(0) in argv_of(each.id.pid)]
    finally:
        holder.kill()
        await holder.wait()
        await other.clean()
