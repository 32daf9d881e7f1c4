"""Who can reach whom: the declared truth table, held against real packets.

The world is made once. A test that changes something does so to VMs of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from pathlib import Path

import pytest
import pytest_asyncio

from plasmavmc.errors import HostError
from plasmavmc.host import addresses
from plasmavmc.host.operations import Limits, TapRequest
from plasmavmc.host.processes import uids_of
from plasmavmc.types import NetworkSpec, mac_of, vm_key
from tests.contract.host_rig import Namespace, eventually
from tests.real import network_truth as truth
from tests.real.network_world import HOST_OUTSIDE, LIST, OUTSIDE6, Vm, World, jailed_tap, nic, world

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
ENDS = {
    ("a1", "a2"): ("VM", truth.OWN),
    ("a2", "a1"): ("VM", truth.OWN),
    ("a1", "b1"): ("VM", truth.OTHER_PROJECT),
    ("b1", "a1"): ("VM", truth.OTHER_PROJECT),
    ("b1", "a2"): ("VM", truth.OTHER_PROJECT),
    ("a1", "other1"): ("VM", truth.OTHER_INSTALLATION),
    ("other1", "a1"): ("VM", truth.OTHER_INSTALLATION),
    ("other1", "b1"): ("VM", truth.OTHER_INSTALLATION),
    ("a1", "gateway"): ("VM", truth.ITS_HOST),
    ("a1", "other gateway"): ("VM", truth.ITS_HOST),
    ("other1", "gateway"): ("VM", truth.ITS_HOST),
    ("a1", "host"): ("VM", truth.ITS_HOST),
    ("b1", "host"): ("VM", truth.ITS_HOST),
    ("a1", "metadata"): ("VM", truth.METADATA),
    ("other1", "metadata"): ("VM", truth.METADATA),
    ("a1", "another host"): ("VM", truth.POOL),
    ("a1", "outside"): ("VM", truth.ELSEWHERE),
    ("b1", "outside"): ("VM", truth.ELSEWHERE),
    ("other1", "outside"): ("VM", truth.ELSEWHERE),
    ("b1", "b2"): ("VM", truth.OWN),
    ("b2", "b1"): (truth.LISTED, truth.OWN),
    ("b2", "host"): (truth.LISTED, truth.ITS_HOST),
    ("b2", "metadata"): (truth.LISTED, truth.METADATA),
    ("b2", "another host"): (truth.LISTED, truth.POOL),
    ("b2", "outside"): (truth.LISTED, truth.ON_ITS_LIST),
    ("b2", "far outside"): (truth.LISTED, truth.OFF_ITS_LIST),
    ("b1", "far outside"): ("VM", truth.ELSEWHERE),
    ("host", "b2"): ("host", "VM"),
    ("host", "a1"): ("host", "VM"),
    ("host", "b1"): ("host", "VM"),
    ("host", "other1"): ("host", "VM"),
    ("outside", "a1"): ("elsewhere", "VM"),
    ("outside", "other1"): ("elsewhere", "VM"),
}
"""Rows of the truth table by places of the world that stand for them."""
REACHABLE = {("host", "outside"), ("host", "metadata"), ("host", "another host"), ("outside", "host")}
"""So that what is closed to others is known to be there."""
PAIRS = {*ENDS, *REACHABLE}
Found = set[tuple[str, str, int, str]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def a_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("world")) as made:
        yield made


async def reached(made: World, pairs: set[tuple[str, str]], kinds: tuple[str, ...] = truth.KINDS) -> Found:
    """Which of these pairs can talk, by which family and protocol."""
    sources = {source for source, _ in pairs}
    found = await asyncio.gather(*(reached_from(made, source, pairs, kinds) for source in sources))
    return set().union(*found)


async def reached_from(made: World, source: str, pairs: set[tuple[str, str]], kinds: tuple[str, ...]) -> Found:
    targets = [(target, family) for start, target in sorted(pairs) if start == source for family in (4, 6)]
    orders = [(*target, kind) for target in targets if made.address(*target) for kind in kinds]
    probes = [(kind, made.address(target, family), "") for target, family, kind in orders]
    answers = await asyncio.to_thread(made.peers[source].probes, probes)
    return {(source, *order) for order, answer in zip(orders, answers, strict=True) if answer}


def every_kind(pairs: set[tuple[str, str]]) -> Found:
    return {(*pair, family, kind) for pair in pairs for family in (4, 6) for kind in truth.KINDS}


def declared(made: World, kinds: tuple[str, ...] = truth.KINDS) -> Found:
    """What the truth table says of this world."""
    told = {(pair, family) for pair, row in ENDS.items() for family in (4, 6) if truth.may(*row, family)}
    told |= {(pair, family) for pair in REACHABLE for family in (4, 6)}
    return {(*pair, family, kind) for pair, family in told if made.address(pair[1], family) for kind in kinds}


@pytest.mark.parametrize(("bridge_calls_iptables", "kinds"), [("0", truth.KINDS), ("1", truth.KINDS + truth.PORTS)])
async def test_the_truth_table_holds(a_world: World, bridge_calls_iptables: str, kinds: tuple[str, ...]) -> None:
    for family in ("iptables", "ip6tables"):
        a_world.host.run("sysctl", "-q", f"net.bridge.bridge-nf-call-{family}={bridge_calls_iptables}")
    assert await reached(a_world, PAIRS, kinds) == declared(a_world, kinds)


async def test_the_truth_table_holds_while_vms_come_and_go(a_world: World) -> None:
    """Each of them is a load of the rules."""

    async def churn() -> None:
        for number in range(10):
            key = vm_key(f"vm_churn_{number}")
            attachment = await a_world.networks[0].setup_tap(key, nic(f"churn_{number}", "project_b"))
            await a_world.networks[0].admit(key)
            await a_world.networks[0].restrict(key, LIST[: 1 + number % len(LIST)])
            await a_world.networks[0].release(key)
            os.close(attachment.fd)

    found, _ = await asyncio.gather(reached(a_world, PAIRS), churn())
    assert found == declared(a_world)


@pytest.mark.parametrize(
    "wiping",
    [
        ("flush", "ruleset"),
        ("delete", "table", "bridge", "{table}"),
        ("flush", "chain", "inet", "{table}", "forward"),
        ("flush", "set", "inet", "{table}", "reachable6"),
    ],
    ids=" ".join,
)
async def test_rules_that_others_take_away_are_put_back(a_world: World, wiping: tuple[str, ...]) -> None:
    """Only what is ours is looked at: other tools' own tables come and go."""
    network, table = a_world.networks[0], a_world.names[0].table
    assert await network.heal() == ""
    a_world.host.run("nft", "add", "table", "inet", "somebodys")
    assert await network.heal() == ""
    a_world.host.run("nft", *(word.format(table=table) for word in wiping))
    assert table in await network.heal()
    await a_world.networks[1].heal()
    assert await network.heal() == ""
    pairs = {("a1", "a2"), ("a1", "b1"), ("a1", "metadata")}
    assert await reached(a_world, pairs) == every_kind({("a1", "a2")})


async def test_the_outside_sees_the_host_and_a_neighbour_sees_the_vm(a_world: World) -> None:
    vm = a_world.vms["a1"]
    assert vm.peer.probe("tcp", a_world.address("outside")) == HOST_OUTSIDE
    assert vm.peer.probe("tcp", a_world.address("a2")) == vm.ip
    assert vm.peer.probe("tcp", a_world.address("a2", 6)) == vm.ipv6


async def test_a_vm_cannot_send_as_another(a_world: World) -> None:
    """Each forged datagram is followed by an honest one, whose arrival shows that the forged one had its chance."""
    liar = await a_world.add_vm("liar", a_world.networks[0], "project_b")
    others = a_world.vms["a2"]
    own_of_another_network = str(IPv6Address(int(IPv6Address(liar.ipv6)) ^ 3 << 32))
    forged = {
        4: (others.ip, "10.64.0.77", "192.0.2.9"),
        6: (others.ipv6, own_of_another_network, "fd12:3456:789a::1", OUTSIDE6),
    }
    assert liar.peer.probe("udp", a_world.address("outside"))  # and its stack has found the gateway by an honest name
    for source in (*forged[4], *forged[6]):
        place = [f"{source}/128", "dev", "lo", "nodad"] if ":" in source else [f"{source}/32", "dev", "lo"]
        liar.namespace.run("ip", "addr", "add", *place)
    targets = ("a1", "b1", "outside", "host")
    for family, sources in forged.items():
        for target, source in product(targets, sources):
            liar.peer.ask({"send": [a_world.address(target, family), source, f"forged {source}"]})
    assert liar.peer.probe("udp", a_world.address("outside"))
    for family in (4, 6):
        assert liar.peer.probe("udp", a_world.address("b1", family))
    for target in targets:
        assert not [payload for payload in a_world.peers[target].seen() if payload.startswith("forged")]


async def test_a_released_address_opens_nothing_to_its_next_holder(a_world: World) -> None:
    """The kernel remembers a connection between two VMs; then one's address goes to a VM of another project."""
    network = a_world.networks[0]
    friend = await a_world.add_vm("friend", network, "project_c")
    old = await a_world.add_vm("old", network, "project_c")
    assert friend.peer.probe("udp", old.ip, ":4444")
    await network.release(vm_key("vm_old"))
    heir = replace(nic("old", "project_d"), ipv4=IPv4Address(old.ip))
    await network.adopt(vm_key("vm_old"), heir, IPv4Address(old.ip))
    await network.settle()
    assert old.peer.probe("udp", a_world.address("outside"))
    assert not friend.peer.probe("udp", old.ip, ":4444")
    assert not old.peer.probe("udp", friend.ip)
    assert not friend.peer.probe("udp", old.ipv6)
    assert not old.peer.probe("udp", friend.ipv6)


async def test_a_vm_without_rules_is_shut_off(a_world: World) -> None:
    lost = await a_world.add_vm("lost", a_world.networks[0], "project_a")
    assert await reached(a_world, {("lost", "a2")}) == every_kind({("lost", "a2")})
    await a_world.networks[0].release(vm_key("vm_lost"))
    assert await reached(a_world, {("lost", "a2"), ("lost", "outside"), ("host", "lost"), ("a2", "lost")}) == set()
    assert lost.attachment.lease.ipv6


async def test_configuring_again_disturbs_nobody(a_world: World) -> None:
    await a_world.networks[0].configure_bridge()
    await a_world.networks[0].configure_bridge()
    assert await reached(a_world, PAIRS) == declared(a_world)


@pytest.mark.parametrize(("name", "other_name"), [("a1", "a2"), ("a2", "a1")], ids=["by descriptor", "in a jail"])
async def test_frames_that_are_not_the_vms_own_enter_nowhere(a_world: World, name: str, other_name: str) -> None:
    """Another MAC, another address of either family, a VLAN tag, ARP in another's name, neighbour discovery and router
    advertisements in any name, multicast, a frame straight to a neighbour."""
    vm, neighbour = a_world.vms[name], a_world.vms[other_name]
    mac, other, gateway = vm.attachment.lease.mac, neighbour.attachment.lease.mac, mac_of(a_world.names[0].bridge)
    own, others = vm.attachment.lease.ipv4.packed, neighbour.attachment.lease.ipv4.packed
    own6, others6 = IPv6Address(vm.ipv6).packed, IPv6Address(neighbour.ipv6).packed
    unspecified, host6 = bytes(16), addresses.GATEWAY.packed
    everybody, everybody6 = "ff:ff:ff:ff:ff:ff", IPv6Address("ff02::1").packed
    sent = (
        frame(gateway, other, 0x0800, ipv4_from(own)),
        frame(gateway, mac, 0x0800, ipv4_from(others)),
        frame(gateway, mac, 0x0800, ipv4_from(bytes(4))),
        frame(gateway, mac, 0x0800, ipv4_from(vm.attachment.lease.gateway.packed)),
        frame(gateway, mac, 0x86DD, b"`" + bytes(60)),
        frame(gateway, other, 0x86DD, ipv6_from(own6, others6)),
        *(frame(gateway, mac, 0x86DD, ipv6_from(source, own6)) for source in (others6, unspecified, host6)),
        frame("33:33:00:00:00:01", mac, 0x86DD, ipv6_from(own6, everybody6)),
        *(
            frame(gateway, mac, 0x86DD, discovery(kind, source, host6, about))
            for kind in range(133, 138)
            for source, about in ((own6, others6), (own6, own6), (own6, host6), (host6, host6))
        ),
        frame("33:33:00:00:00:01", mac, 0x86DD, discovery(134, host6, everybody6, host6)),
        frame(gateway, mac, 0x86DD, behind_options(discovery(136, own6, host6, others6))),
        frame(gateway, mac, 0x8100, b"\x00\x05\x08\x00" + ipv4_from(others)),
        frame(everybody, mac, 0x0806, arp_from(other, others)),
        frame(everybody, mac, 0x0806, arp_from(mac, others)),
        frame(everybody, mac, 0x0806, arp_from(other, own)),
        frame(everybody, other, 0x0806, arp_from(mac, own)),
        frame(other, mac, 0x88CC, bytes(60)),
    )
    taken, let_in = received(a_world.host, vm.attachment.tap), received(a_world.host, a_world.names[0].bridge)
    heard = received(neighbour.namespace, "eth0")
    for data in sent:
        os.write(vm.attachment.fd, data)
    await eventually(lambda: received(a_world.host, vm.attachment.tap) >= taken + len(sent), "the tap took the frames")
    assert received(a_world.host, a_world.names[0].bridge) == let_in
    os.write(vm.attachment.fd, frame(everybody, mac, 0x0806, arp_from(mac, own)))
    await eventually(lambda: received(a_world.host, a_world.names[0].bridge) > let_in, "the VM's own frames enter")
    assert received(neighbour.namespace, "eth0") == heard


async def test_a_vm_hears_nothing_that_is_not_for_it(a_world: World) -> None:
    """No flood, no broadcast, no ARP of others: the host knows each VM's MAC without asking."""
    listener = await a_world.add_vm("listener", a_world.networks[0], "project_a")
    gateway = (str(listener.attachment.lease.gateway), "lladdr", mac_of(a_world.names[0].bridge), "dev", "eth0")
    listener.namespace.run("ip", "neigh", "replace", *gateway, "nud", "permanent")  # so that it asks nothing itself
    before = received(listener.namespace, "eth0")
    assert a_world.vms["a1"].peer.probe("udp", a_world.vms["a2"].ip)
    assert a_world.peers["host"].probe("tcp", a_world.vms["a1"].ip)
    assert not a_world.peers["host"].probe("udp", str(IPv4Address(listener.ip) + 1000))  # asks by broadcast who that is
    assert received(listener.namespace, "eth0") == before


async def test_a_vmm_in_a_jail_finds_its_tap_and_no_network(a_world: World) -> None:
    """What it has opened is its own; the namespace around it has no address, no route and no IPv6."""
    vmm = Path(f"/proc/{a_world.vms['a2'].vmm}")
    devices = {line.partition(":")[0].strip() for line in (vmm / "net/dev").read_text().splitlines()[2:]}
    assert devices == {"lo", "tap0", "cable0"}
    assert (vmm / "net/if_inet6").read_text() == ""
    assert (vmm / "net/fib_trie").read_text() == ""
    assert len((vmm / "net/route").read_text().splitlines()) <= 1
    assert uids_of(int(vmm.name)) == {await a_world.helpers[0].host.uid_take(vm_key("vm_a2"))}


async def test_a_cable_ends_with_its_vmm(a_world: World) -> None:
    network, key = a_world.networks[0], vm_key("vm_short")
    attachment = await network.setup_tap(key, NetworkSpec("nic_short", "project_a"), opened=False)
    vmm, tap = await jailed_tap(a_world.helpers[0], key, attachment)
    os.close(tap)
    assert attachment.tap in a_world.host.links()
    os.kill(vmm, signal.SIGKILL)
    await eventually(lambda: attachment.tap not in a_world.host.links(), "the cable is gone", 60.0)
    await network.release(key)


async def test_a_tap_in_a_jail_is_that_vms_own(a_world: World) -> None:
    host, key = a_world.helpers[0].host, vm_key("vm_greedy")
    tap = a_world.vms["a1"].attachment
    await host.uid_take(key)
    os.close(await host.jail_prepare(key, {}))
    with pytest.raises(HostError) as refused:
        await host.jail_spawn(key, Limits(256 << 20, 1000), TapRequest(tap.tap, tap.lease.mac))
    assert refused.value.code == "helper-refused"
    await host.jail_remove(key)
    await host.uid_free(key)
    assert tap.tap in a_world.host.links()


async def test_no_guest_is_told_of_a_shorter_way(a_world: World) -> None:
    """VM to VM leaves by the interface it came by, for which the kernel would send ICMP redirects."""
    vm = a_world.vms["a1"]
    assert vm.peer.probe("tcp", a_world.vms["a2"].ip)
    assert vm.peer.probe("tcp", a_world.vms["a2"].ipv6)
    assert redirects(vm) == 0
    assert "Icmp6InRedirects" + " 0" in " ".join(vm.namespace.run("cat", "/proc/net/snmp6").split())


async def test_a_vm_is_told_of_packets_that_are_too_big(a_world: World) -> None:
    """Path MTU discovery works between VMs: what the next link cannot carry is told to who sent it."""
    receiver, bridge = a_world.vms["b1"], a_world.names[0].bridge
    sender = await a_world.add_vm("sender", a_world.networks[0], "project_b")
    narrow = ("ip", "-6", "route", "replace", f"{receiver.ipv6}/128", "dev", bridge, "mtu", "lock", "1280")
    a_world.host.run(*narrow)
    sender.peer.probe("large icmp", receiver.ipv6)
    assert "mtu 1280" in sender.namespace.run("ip", "-6", "route", "get", receiver.ipv6)
    assert sender.peer.probe("large icmp", receiver.ipv6)
    a_world.host.run("ip", "-6", "route", "del", f"{receiver.ipv6}/128", "dev", bridge)


def frame(destination: str, source: str, kind: int, payload: bytes) -> bytes:
    """An Ethernet frame behind the 10 bytes of a virtio-net header."""
    address = bytes.fromhex(destination.replace(":", "")) + bytes.fromhex(source.replace(":", ""))
    return bytes(10) + address + kind.to_bytes(2, "big") + payload


def ipv4_from(source: bytes) -> bytes:
    """An IPv4 header (RFC 791) of a UDP packet without content."""
    return bytes.fromhex("4500002800000000401100 00") + source + bytes([192, 0, 2, 2]) + bytes(40)


def ipv6_from(source: bytes, destination: bytes, kind: int = 59, payload: bytes = b"") -> bytes:
    """An IPv6 packet (RFC 8200); 59 is one without content."""
    return b"`" + bytes(3) + len(payload).to_bytes(2, "big") + bytes((kind, 255)) + source + destination + payload


def discovery(kind: int, source: bytes, destination: bytes, about: bytes) -> bytes:
    """A message of neighbour discovery (RFC 4861), whose checksum nobody gets to see."""
    return ipv6_from(source, destination, 58, bytes((kind, 0)) + bytes(6) + about)


def behind_options(packet: bytes) -> bytes:
    """The same behind a header of destination options with padding."""
    return ipv6_from(packet[8:24], packet[24:40], 60, bytes((58, 0, 1, 4, 0, 0, 0, 0)) + packet[40:])


def arp_from(mac: str, address: bytes) -> bytes:
    """An ARP request (RFC 826)."""
    return bytes.fromhex("0001080006040001" + mac.replace(":", "")) + address + bytes(10) + bytes(20)


def received(namespace: Namespace, link: str) -> int:
    """Packets that came in by a link."""
    (shown,) = json.loads(namespace.run("ip", "-json", "-s", "link", "show", link))
    packets: int = shown["stats64"]["rx"]["packets"]
    return packets


def redirects(vm: Vm) -> int:
    """ICMP redirects that a guest was sent."""
    names, values = [line.split() for line in vm.namespace.run("cat", "/proc/net/snmp").splitlines() if "Icmp:" in line]
    return int(values[names.index("InRedirects")])
