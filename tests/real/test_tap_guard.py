"""What a VM may send by its tap: one table, held against raw frames, for each way that frames are checked."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
import pytest_asyncio

from plasmavmc.host.addresses import GATEWAY as GATEWAY_IPV6
from plasmavmc.host.addresses import prefix_from, private_address
from plasmavmc.host.helper.ebpf_programs import BPF_FILE_SYSTEM
from plasmavmc.host.names import shaper_name
from plasmavmc.host.operations import Guarding, RuleSet
from plasmavmc.types import NetworkUsage, mac_of, vm_key
from tests.contract.host_parts import ONE, SUBNET, TWO, HostRig
from tests.contract.host_rig import RealHelper, eventually, real_helper, rig_of

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
EVERYBODY = "ff:ff:ff:ff:ff:ff"
OTHER = mac_of("somebody else")
GATEWAY = IPv4Address("10.64.16.1")
OWN, STRANGER = IPv4Address("10.64.16.2"), IPv4Address("10.64.16.3")
PREFIX = prefix_from("a platform")
PRIVATE = private_address(PREFIX, SUBNET, 7, OWN)
NEIGHBOUR = private_address(PREFIX, IPv4Network("10.64.32.0/20"), 7, IPv4Address("10.64.32.2"))
"""On another node: here the host asks for nobody who is not there."""
LINK_LOCAL = IPv6Address("fe80::2")
ICMPV6, HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 58, 0, 43, 44, 60


@dataclass(frozen=True, slots=True)
class Tap:
    """A VM's end of its tap."""

    helper: RealHelper
    rig: HostRig
    fd: int
    key: str = ONE

    @property
    def mac(self) -> str:
        return self.rig.tap(self.key).mac

    @property
    def name(self) -> str:
        return self.rig.tap(self.key).name

    def send(self, frame: bytes) -> None:
        os.write(self.fd, bytes(10) + frame)  # nothing for the other side to finish

    def received(self, link: str) -> int:
        """Packets that came in at a link of the helper's namespace."""
        counts = self.helper.namespace.run("cat", "/proc/net/dev").partition(f"{link}:")[2].split()
        return int(counts[1])

    async def took(self, frames: list[bytes]) -> int:
        """How many of these frames came through to the bridge; all of them have had their chance."""
        tap, bridge = self.received(self.name), self.received(self.rig.bridge.name)
        for frame in frames:
            self.send(frame)
        await eventually(lambda: self.received(self.name) >= tap + len(frames), "the tap took the frames")
        return self.received(self.rig.bridge.name) - bridge

    async def traffic(self) -> NetworkUsage:
        return (await self.rig.host.taps_usage([self.name]))[self.name]


@asynccontextmanager
async def admitted(helper: RealHelper) -> AsyncIterator[Tap]:
    """The tap of a VM with the address `OWN`."""
    rig = rig_of(helper)
    await rig.host.bridge_ensure(rig.bridge)
    with closing(await rig.host.tap_open(rig.tap())) as fd:
        await rig.host.rules_apply(only_one(rig))
        yield Tap(helper, rig, fd)


def only_one(rig: HostRig) -> RuleSet:
    return RuleSet(rig.bridge, (replace(rig.member(ONE, 2), ipv6=PRIVATE),))


def both(rig: HostRig) -> RuleSet:
    return RuleSet(rig.bridge, (*only_one(rig).members, rig.member(TWO, 3)))


@contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@pytest_asyncio.fixture(params=["tcx", "clsact", "nft"], scope="module", loop_scope="module")
async def tap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tap]:
    place = tmp_path_factory.mktemp("host")
    async with real_helper(place, guards=(request.param, "nft")) as helper, admitted(helper) as made:
        assert await made.rig.host.taps_guarding() == Guarding(request.param, "")
        yield made


def ethernet(source: str, protocol: int, payload: bytes, to: str = EVERYBODY) -> bytes:
    return bytes.fromhex((to + source).replace(":", "")) + struct.pack("!H", protocol) + payload


def ipv4(source: IPv4Address, payload: bytes = bytes(26)) -> bytes:
    start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, 253, 0)
    header = start + source.packed + GATEWAY.packed
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:] + payload


def arp(mac: str, address: IPv4Address, *, operation: int = 1, kind: int = 1) -> bytes:
    start = struct.pack("!HHBBH", kind, 0x0800, 6, 4, operation)
    return start + bytes.fromhex(mac.replace(":", "")) + address.packed + bytes(6) + GATEWAY.packed


def ipv6(source: IPv6Address, payload: bytes, following: int, to: IPv6Address = NEIGHBOUR) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 255) + source.packed + to.packed + payload


def icmpv6(kind: int) -> bytes:
    """A message of the link's, as long as an advertisement with an option."""
    return bytes((kind, 0, 0, 0)) + bytes(28)


def behind(following: int, payload: bytes, length: int = 0) -> bytes:
    """An extension header of 8 bytes and more before something."""
    return bytes((following, length)) + bytes(6 + 8 * length) + payload


def own_ipv6(tap: Tap, payload: bytes, following: int) -> bytes:
    return ethernet(tap.mac, 0x86DD, ipv6(PRIVATE, payload, following), mac_of(tap.rig.bridge.name))


def forged_ipv6(tap: Tap) -> list[tuple[str, bytes]]:
    mac, everybody = tap.mac, IPv6Address("ff02::1")
    discovery = [own_ipv6(tap, icmpv6(kind), ICMPV6) for kind in (133, 134, 135, 136, 137)]
    hidden = [
        own_ipv6(tap, behind(ICMPV6, icmpv6(136)), DESTINATION),
        own_ipv6(tap, behind(ROUTING, behind(ICMPV6, icmpv6(134), 1)), HOP_BY_HOP),
        own_ipv6(tap, behind(ICMPV6, icmpv6(134)), FRAGMENT),
    ]
    endless = icmpv6(134)
    for following in (ICMPV6, *[DESTINATION] * 7):
        endless = behind(following, endless)
    return [
        ("source-ipv6", ethernet(mac, 0x86DD, ipv6(NEIGHBOUR, bytes(20), 17))),
        ("source-ipv6", ethernet(mac, 0x86DD, ipv6(LINK_LOCAL, bytes(20), 17))),
        ("source-ipv6", ethernet(mac, 0x86DD, ipv6(IPv6Address("::"), icmpv6(135), ICMPV6, everybody))),
        ("source-ipv6", ethernet(mac, 0x86DD, ipv6(GATEWAY_IPV6, icmpv6(134), ICMPV6))),
        ("source-mac", ethernet(OTHER, 0x86DD, ipv6(PRIVATE, bytes(20), 17))),
        ("multicast", ethernet(mac, 0x86DD, ipv6(PRIVATE, bytes(20), 17, everybody))),
        ("short", ethernet(mac, 0x86DD, ipv6(PRIVATE, b"", 17)[:39])),
        *(("neighbour-discovery", frame) for frame in (*discovery, *hidden)),
        ("extension-headers", own_ipv6(tap, endless, DESTINATION)),
        ("extension-headers", own_ipv6(tap, b"", DESTINATION)),
    ]


def honest_ipv6(tap: Tap) -> list[bytes]:
    echo = icmpv6(128)
    return [
        own_ipv6(tap, bytes(20), 17),
        own_ipv6(tap, echo, ICMPV6),
        own_ipv6(tap, behind(ICMPV6, echo), DESTINATION),
    ]


def honest(tap: Tap) -> list[bytes]:
    mac = tap.mac
    return [
        ethernet(mac, 0x0806, arp(mac, OWN)),
        ethernet(mac, 0x0806, arp(mac, OWN, operation=2)),
        ethernet(mac, 0x0800, ipv4(OWN), mac_of(tap.rig.bridge.name)),
    ]


def forged(mac: str) -> list[tuple[str, bytes]]:
    """Frames that are not the VM's own, each with the reason it is dropped for."""
    return [
        ("source-mac", ethernet(OTHER, 0x0800, ipv4(OWN))),
        ("source-mac", ethernet(OTHER, 0x0806, arp(mac, OWN))),
        ("source-mac", ethernet(EVERYBODY, 0x0800, ipv4(OWN))),
        ("source-ipv4", ethernet(mac, 0x0800, ipv4(STRANGER))),
        ("source-ipv4", ethernet(mac, 0x0800, ipv4(GATEWAY))),
        ("source-ipv4", ethernet(mac, 0x0800, ipv4(IPv4Address(0)))),
        ("arp", ethernet(mac, 0x0806, arp(OTHER, OWN))),
        ("arp", ethernet(mac, 0x0806, arp(mac, STRANGER))),
        ("arp", ethernet(mac, 0x0806, arp(mac, IPv4Address(0)))),
        ("arp", ethernet(mac, 0x0806, arp(mac, OWN, kind=6))),
        ("source-ipv6", ethernet(mac, 0x86DD, b"\x60" + bytes(60))),
        ("protocol", ethernet(mac, 0x88CC, bytes(60))),
        ("protocol", ethernet(mac, 60, bytes(60))),
        ("vlan", ethernet(mac, 0x8100, b"\x00\x05\x08\x00" + ipv4(OWN))),
        ("vlan", ethernet(mac, 0x88A8, b"\x00\x05\x08\x00" + ipv4(OWN))),
        ("vlan", ethernet(mac, 0x8100, b"\x00\x00\x81\x00\x00\x05\x08\x00" + ipv4(OWN))),
        ("short", ethernet(mac, 0x0800, ipv4(OWN)[:19])),
        ("short", ethernet(mac, 0x0800, b"")),
        ("short", ethernet(mac, 0x0806, arp(mac, OWN)[:16])),
    ]


async def test_the_vms_own_frames_pass_and_no_forged_one_does(tap: Tap) -> None:
    for reason, frame in forged(tap.mac):
        assert await tap.took([frame]) == 0, f"{reason}: {frame.hex()}"
    assert await tap.took(honest(tap)) == len(honest(tap))


async def test_each_drop_is_counted_with_its_reason_and_what_passes_by_packets_and_bytes(tap: Tap) -> None:
    if (await tap.rig.host.taps_guarding()).by == "nft":
        assert await tap.rig.host.taps_usage([tap.name]) == {}
        return
    for reason, frame in forged(tap.mac):
        before = (await tap.traffic()).dropped.get(reason, 0)
        await tap.took([frame])
        assert (await tap.traffic()).dropped[reason] == before + 1, f"{reason}: {frame.hex()}"
    before_all = await tap.traffic()
    await tap.took(honest(tap))
    after = await tap.traffic()
    assert after.transmit_packets == before_all.transmit_packets + len(honest(tap))
    assert after.transmit_bytes == before_all.transmit_bytes + sum(map(len, honest(tap)))
    assert of_the_vm(after) == of_the_vm(before_all)


def of_the_vm(counted: NetworkUsage) -> dict[str, int]:
    """What was dropped of what the VM sent; a host speaks to all links when it likes."""
    return {reason: count for reason, count in counted.dropped.items() if reason != "flooded"}


async def test_by_ipv6_a_vm_sends_as_itself_only_and_says_nothing_of_its_link(tap: Tap) -> None:
    programs = (await tap.rig.host.taps_guarding()).by != "nft"
    for reason, frame in forged_ipv6(tap):
        if reason == "extension-headers" and not programs:
            continue  # the firewall reads them where the packet is routed
        assert await tap.took([frame]) == 0, f"{reason}: {frame.hex()}"
        assert not programs or (await tap.traffic()).dropped[reason], f"{reason}: {frame.hex()}"
    assert await tap.took(honest_ipv6(tap)) == len(honest_ipv6(tap))
    if programs:  # the host keeps a later piece of a packet until it has the first
        before = await tap.traffic()
        await tap.took([own_ipv6(tap, struct.pack("!BBHI", ICMPV6, 0, 8 << 3, 1) + bytes(16), FRAGMENT)])
        assert (await tap.traffic()).transmit_packets == before.transmit_packets + 1


async def test_a_frame_in_pieces_is_read_whole(tap: Tap) -> None:
    """The first piece may be as short as the VM likes: here by a header that asks for offloads."""
    payload = ipv4(STRANGER, struct.pack("!HHHH", 1, 2, 1208, 0) + bytes(1200))
    offload = struct.pack("=BBHHHH", 1, 0, 14, 0, 34, 6)
    bridge = tap.received(tap.rig.bridge.name)
    taken = tap.received(tap.name)
    os.write(tap.fd, offload + ethernet(tap.mac, 0x0800, payload))
    await eventually(lambda: tap.received(tap.name) > taken, "the tap took the frame")
    assert tap.received(tap.rig.bridge.name) == bridge


async def test_a_tap_that_no_rule_names_sends_nothing(tap: Tap) -> None:
    """Nor does one that was made ahead, which waits while rules are applied."""
    rig = tap.rig
    await rig.host.tap_make()
    await rig.host.rules_apply(only_one(rig))
    with closing(await rig.host.tap_open(rig.tap(TWO))) as fd:
        other = Tap(tap.helper, rig, fd, TWO)
        frame = ethernet(other.mac, 0x0800, ipv4(STRANGER))
        assert await other.took([frame]) == 0
        await rig.host.rules_apply(both(rig))
        assert await other.took([frame]) == 1
        counted = (await rig.host.taps_usage([other.name])).get(other.name)
        assert counted is None or (counted.transmit_packets, of_the_vm(counted)) == (1, {"unadmitted": 1})
        await rig.host.rules_apply(only_one(rig))
        assert await other.took([frame]) == 0
    assert await tap.took(honest(tap)) == len(honest(tap))


def interface_of(tap: Tap) -> int:
    [link] = json.loads(tap.helper.namespace.run("ip", "-json", "link", "show", tap.name))
    return int(link["ifindex"])


def pinned(tap: Tap) -> set[str]:
    """What is pinned for a tap's interfaces, by their numbers."""
    place = BPF_FILE_SYSTEM / f"swg-{tap.helper.names.key}"
    return {each.name.partition("-")[0] for each in place.glob("*-*")}


@pytest.mark.parametrize("last", ["the tap", "the rules"])
async def test_of_a_tap_that_ended_nothing_stays_whichever_of_it_and_its_rules_goes_first(tap: Tap, last: str) -> None:
    rig = tap.rig
    await rig.host.rules_apply(both(rig))
    with closing(await rig.host.tap_open(rig.tap(TWO))) as fd:
        other = Tap(tap.helper, rig, fd, TWO)
        number = str(interface_of(other))
        assert await other.took([ethernet(other.mac, 0x0800, ipv4(STRANGER))]) == 1
        assert (number in pinned(tap)) is ((await rig.host.taps_guarding()).by == "tcx")
        if last == "the tap":
            await rig.host.rules_apply(only_one(rig))
            assert await other.took([ethernet(other.mac, 0x0800, ipv4(STRANGER))]) == 0
    if last == "the tap":
        await rig.host.rules_apply(RuleSet(rig.bridge, (*only_one(rig).members, rig.member(vm_key("vm_three"), 4))))
    await rig.host.rules_apply(only_one(rig))
    assert number not in pinned(tap)
    assert await tap.took(honest(tap)) == len(honest(tap))


async def test_a_tap_with_limits_is_guarded_as_one_without(tap: Tap) -> None:
    """What it sends is led round by another device, and counted once."""
    rig = tap.rig
    await rig.host.rules_apply(both(rig))
    limited = replace(rig.tap(TWO), receive=10_000_000, transmit=10_000_000)
    with closing(await rig.host.tap_open(limited)) as fd:
        other = Tap(tap.helper, rig, fd, TWO)
        passed, round_before = tap.received(rig.bridge.name), tap.received(shaper_name(limited.name))
        other.send(ethernet(other.mac, 0x0800, ipv4(OWN)))
        other.send(ethernet(other.mac, 0x0800, ipv4(STRANGER)))
        await eventually(lambda: tap.received(rig.bridge.name) > passed, "the honest frame came round")
        assert tap.received(rig.bridge.name) == passed + 1
        assert tap.received(shaper_name(limited.name)) > round_before
        counted = (await rig.host.taps_usage([other.name])).get(other.name)
        assert counted is None or (counted.transmit_packets, of_the_vm(counted)) == (1, {"source-ipv4": 1})
    await rig.host.tap_forget(limited.name)
    await rig.host.rules_apply(only_one(rig))


async def test_programs_exchanged_under_traffic_let_no_forged_frame_in_and_lose_no_honest_one(tap: Tap) -> None:
    """Helpers come and go, and each exchanges the programs, while frames of both kinds arrive."""
    sent, stop = Sender(tap), threading.Event()
    taken, let_in = tap.received(tap.name), tap.received(tap.rig.bridge.name)
    sending = threading.Thread(target=sent.run, args=(stop,))
    sending.start()
    try:
        for _ in range(3):
            tap.helper.restart()
            rig = rig_of(tap.helper)
            await rig.host.bridge_ensure(rig.bridge)
            await rig.host.rules_apply(only_one(rig))
    finally:
        stop.set()
        await asyncio.to_thread(sending.join)
    await eventually(lambda: tap.received(tap.name) >= taken + 2 * sent.rounds, "the tap took the frames")
    assert tap.received(tap.rig.bridge.name) - let_in == sent.rounds > 0


class Sender:
    """Sends an honest frame after a forged one, again and again."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._honest = ethernet(tap.mac, 0x0800, ipv4(OWN), mac_of(tap.rig.bridge.name))
        self._forged = ethernet(tap.mac, 0x0800, ipv4(STRANGER), mac_of(tap.rig.bridge.name))
        self.rounds = 0

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(0.0005):
            self._tap.send(self._forged)
            self._tap.send(self._honest)
            self.rounds += 1
