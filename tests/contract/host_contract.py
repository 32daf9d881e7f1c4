"""What every `Host` must do, whether it has root behind it or not.

A rig is a host with what a test needs beside it. `vmm` is a program on the host's list; `listener` is the one address
that it may open; `network_in_use` overlaps something that the machine has already.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import socket
import time
from base64 import b64encode
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host import addresses
from plasmavmc.host.configuration import GUARDS, Listener
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import (
    Bridge,
    Host,
    Keep,
    Limits,
    Member,
    Peer,
    ProcessId,
    Reach,
    Routed,
    RuleSet,
    Spawned,
    TapRequest,
    Underlay,
)
from plasmavmc.types import MIB, mac_of, vm_key

LIMITS = Limits(256 * MIB, 1000)
ONE, TWO = vm_key("vm_one"), vm_key("vm_two")
SUBNET = IPv4Network("10.64.16.0/20")
PREFIX = IPv6Network("fd12:3456:789a::/48")
DEADLINE_S = 5.0
FENCE_S = 0.6
ENCRYPTED = Reach(Underlay.WIREGUARD, IPv4Address("192.0.2.1"), 7184)
KEYS = tuple(b64encode(bytes([number]) * 32).decode() for number in (1, 2))


@dataclass(frozen=True, slots=True)
class HostRig:
    host: Host
    names: HostNames
    vmm: str
    listener: Listener
    network_in_use: IPv4Network
    uids: range

    @property
    def bridge(self) -> Bridge:
        return bridge_in(self.names, SUBNET)

    def tap(self, key: str = ONE) -> TapRequest:
        return TapRequest(self.names.tap(key), mac_of(key))

    def member(self, key: str, number: int, network: str = "net_a") -> Member:
        return Member(self.names.tap(key), mac_of(key), SUBNET.network_address + number, network)

    def private_member(self, key: str, number: int) -> Member:
        """The same with an address on the private network."""
        member = self.member(key, number)
        return replace(member, ipv6=addresses.private_address(PREFIX, SUBNET, 1, member.ipv4))

    def argv(self, key: str = ONE, *more: str) -> tuple[str, ...]:
        """A machine without anything, which waits for ever."""
        name = ("-name", self.names.process(key))
        return (self.vmm, *name, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", *more)


def bridge_in(names: HostNames, subnet: IPv4Network) -> Bridge:
    return Bridge(names.bridge, subnet.network_address + 1, subnet)


def identity(spawned: Spawned) -> ProcessId:
    return ProcessId(spawned.pid, spawned.start_time)


def has_ended(spawned: Spawned, timeout_s: float = 0) -> bool:
    return bool(select.select([spawned.pidfd], [], [], timeout_s)[0])


def let_go(spawned: Spawned) -> None:
    os.close(spawned.pidfd)
    os.close(spawned.stdout)


async def start(rig: HostRig, key: str = ONE) -> Spawned:
    await rig.host.uid_take(key)
    return await rig.host.vm_spawn(key, rig.argv(key), LIMITS, {})


async def end(rig: HostRig, spawned: Spawned, key: str = ONE) -> int | None:
    """Kill a VMM and reap it."""
    await rig.host.vm_signal(key, identity(spawned), signal.SIGKILL)
    assert await asyncio.to_thread(has_ended, spawned, DEADLINE_S)
    let_go(spawned)
    return await rig.host.vm_reap(key, identity(spawned))


async def refused(code: str, attempt: object) -> None:
    with pytest.raises(HostError) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.code == code


class HostContract:
    """Subclasses give the fixture `rig`."""

    # Bridge, taps, rules

    async def test_a_bridge_may_be_ensured_again(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        await rig.host.bridge_ensure(rig.bridge)

    async def test_a_bridge_may_move_to_another_subnet(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        await rig.host.bridge_ensure(bridge_in(rig.names, IPv4Network("10.64.32.0/20")))

    @pytest.mark.parametrize(
        ("name", "gateway", "network"),
        [
            ("eth0", "10.64.16.1", "10.64.16.0/20"),
            ("swgaaaabr", "10.64.16.1", "10.64.16.0/20"),
            (None, "10.64.16.9", "10.64.16.0/20"),
            (None, "192.168.0.1", "192.168.0.0/20"),
            (None, "10.64.0.1", "10.64.0.0/10"),
        ],
    )
    async def test_only_the_installations_own_bridge_can_be_made(
        self, rig: HostRig, name: str | None, gateway: str, network: str
    ) -> None:
        bridge = Bridge(name or rig.names.bridge, IPv4Address(gateway), IPv4Network(network))
        await refused("helper-refused", rig.host.bridge_ensure(bridge))

    async def test_a_resolver_has_sockets_where_the_bridge_is_and_nowhere_before(self, rig: HostRig) -> None:
        await refused("no-bridge", rig.host.resolver_sockets())
        await rig.host.bridge_ensure(rig.bridge)
        datagrams, connections = [socket.socket(fileno=fd) for fd in await rig.host.resolver_sockets()]
        with datagrams, connections:
            assert datagrams.type == socket.SOCK_DGRAM
            assert connections.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    async def test_a_network_in_use_is_told_and_refused(self, rig: HostRig) -> None:
        assert any(network.overlaps(rig.network_in_use) for network in await rig.host.networks_in_use())
        await refused("subnet-taken", rig.host.bridge_ensure(bridge_in(rig.names, rig.network_in_use)))

    async def test_the_own_bridge_is_not_a_network_in_use(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        assert SUBNET not in await rig.host.networks_in_use()

    async def test_a_tap_is_a_descriptor(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        fd = await rig.host.tap_open(rig.tap())
        os.fstat(fd)
        assert not os.get_inheritable(fd)
        os.close(fd)

    async def test_a_tap_needs_the_bridge(self, rig: HostRig) -> None:
        await refused("no-bridge", rig.host.tap_open(rig.tap()))

    async def test_a_tap_is_made_once(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        fd = await rig.host.tap_open(rig.tap())
        await refused("host-network", rig.host.tap_open(rig.tap()))
        os.close(fd)

    async def test_a_tap_cannot_have_a_foreign_name_or_a_strange_mac(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        await refused("helper-refused", rig.host.tap_open(TapRequest("eth0", mac_of("x"))))
        await refused("helper-refused", rig.host.tap_open(TapRequest("swgaaaabbbbbbbb", mac_of("x"))))
        await refused("helper-refused", rig.host.tap_open(replace(rig.tap(), mac="ff:ff:ff:ff:ff:ff")))

    async def test_a_tap_may_have_limits_which_are_forgotten_by_its_name(self, rig: HostRig) -> None:
        assert await rig.host.limits_lack() == ""
        await rig.host.bridge_ensure(rig.bridge)
        os.close(await rig.host.tap_open(replace(rig.tap(), receive=1_000_000, transmit=2_000_000)))
        await rig.host.tap_forget(rig.tap().name)
        await rig.host.tap_forget(rig.tap().name)

    async def test_only_own_taps_are_forgotten_and_rates_make_sense(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        for name in ("eth0", rig.names.bridge, f"{rig.tap().name}x", "swgaaaabbbbbbbb"):
            await refused("helper-refused", rig.host.tap_forget(name))
        for rate in (1, -1, 2**32):
            await refused("helper-refused", rig.host.tap_open(replace(rig.tap(), receive=rate)))
            await refused("helper-refused", rig.host.tap_open(replace(rig.tap(), transmit=rate)))

    async def test_taps_are_made_ahead_to_a_bound_and_change_nothing_but_the_time_it_takes(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        for _ in range(5):
            more = await rig.host.tap_make()
        assert not more
        first, second = [await rig.host.tap_open(rig.tap(key)) for key in (ONE, TWO)]
        await refused("host-network", rig.host.tap_open(rig.tap()))
        os.close(first)
        os.close(second)

    async def test_it_tells_how_taps_are_guarded(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        assert (await rig.host.taps_guarding()).by in GUARDS
        assert await rig.host.taps_guarding() == await rig.host.taps_guarding()

    async def test_a_taps_use_is_counted_from_nothing_and_only_of_own_taps(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        one, other = rig.tap(), rig.tap(TWO)
        assert await rig.host.taps_usage([one.name]) == {}
        fd = await rig.host.tap_open(one)
        used = await rig.host.taps_usage([one.name, other.name])
        assert set(used) == ({one.name} if (await rig.host.taps_guarding()).by != "nft" else set())
        assert all((each.transmit_packets, each.receive_packets) == (0, 0) for each in used.values())
        os.close(fd)
        for name in ("eth0", rig.names.bridge, "swgaaaabbbbbbbb"):
            await refused("helper-refused", rig.host.taps_usage([one.name, name]))

    async def test_rules_are_replaced_as_a_whole(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        await rig.host.rules_apply(RuleSet(rig.bridge, (rig.member(ONE, 2), rig.member(TWO, 3, "net_b"))))
        await rig.host.rules_apply(RuleSet(rig.bridge))

    async def test_rules_take_no_address_of_others_and_none_twice(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        outside = replace(rig.member(ONE, 2), ipv4=IPv4Address("192.0.2.1"))
        for members in (
            (outside,),
            (rig.member(ONE, 1),),
            (rig.member(ONE, 2), rig.member(TWO, 2)),
            (rig.member(ONE, 2), replace(rig.member(ONE, 3), mac=mac_of("other"))),
            (replace(rig.member(ONE, 2), network_id='a" drop'),),
        ):
            await refused("helper-refused", rig.host.rules_apply(RuleSet(rig.bridge, members)))

    async def test_a_private_address_says_network_node_and_ipv4_address(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        one, two = (rig.private_member(key, number) for key, number in ((ONE, 2), (TWO, 3)))
        others = (
            addresses.private_address(PREFIX, SUBNET, 1, IPv4Address("10.64.16.9")),
            addresses.private_address(PREFIX, IPv4Network("10.64.32.0/20"), 1, one.ipv4),
            addresses.private_address(PREFIX, SUBNET, 0, one.ipv4),
            addresses.private_address(IPv6Network("2001:db8::/48"), SUBNET, 1, one.ipv4),
            IPv6Address("fe80::1"),
            IPv6Address("ff02::1"),
        )
        for ipv6 in others:
            await refused("helper-refused", rig.host.rules_apply(RuleSet(rig.bridge, (replace(one, ipv6=ipv6),))))
        stranger = replace(two, network_id="net_b")
        await refused("helper-refused", rig.host.rules_apply(RuleSet(rig.bridge, (one, stranger))))
        await rig.host.rules_apply(RuleSet(rig.bridge, (one, two)))

    async def test_a_peers_private_network_is_that_of_its_subnet_and_nobody_elses(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        subnet = IPv4Network("10.127.240.0/20")
        peer = Peer(subnet, IPv4Address("192.0.2.9"), addresses.node_network(PREFIX, subnet))
        for private in ("fd00::/64", "2001:db8:0:3ff::/64", "fe80::/64", "fd00:0:0:3ff::/63", "::/0"):
            wrong = replace(peer, private=IPv6Network(private, strict=False))
            await refused("helper-refused", rig.host.routes_apply((wrong,), Reach()))
            await refused("helper-refused", rig.host.rules_apply(RuleSet(rig.bridge, peers=(wrong,))))
        await rig.host.rules_apply(RuleSet(rig.bridge, (rig.private_member(ONE, 2),), (peer,)))

    async def test_rules_that_nobody_touched_have_no_fault(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        assert await rig.host.rules_fault() == ""
        await rig.host.rules_apply(RuleSet(rig.bridge, (rig.private_member(ONE, 2),)))
        assert await rig.host.rules_fault() == ""
        await rig.host.rules_apply(RuleSet(rig.bridge))
        assert await rig.host.rules_fault() == ""

    async def test_peers_are_other_nodes_and_reached_by_a_hosts_address(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        peer = Peer(IPv4Network("10.127.240.0/20"), IPv4Address("192.0.2.9"))
        for peers in (
            (replace(peer, network=IPv4Network("192.0.2.0/24")),),
            (replace(peer, network=IPv4Network("10.64.0.0/10")),),
            (peer, replace(peer, network=IPv4Network("10.127.248.0/21"))),
            (replace(peer, via=IPv4Address("10.64.0.1")),),
            (replace(peer, via=IPv4Address("127.0.0.1")),),
            (replace(peer, via=IPv4Address("169.254.169.254")),),
            tuple(replace(peer, network=IPv4Network(f"10.{64 + n // 256}.{n % 256}.0/29")) for n in range(1025)),
        ):
            await refused("helper-refused", rig.host.routes_apply(peers, Reach()))
            await refused("helper-refused", rig.host.rules_apply(RuleSet(rig.bridge, peers=peers)))
        itself = replace(peer, network=rig.bridge.network)
        await refused("helper-refused", rig.host.rules_apply(RuleSet(rig.bridge, peers=(itself,))))
        await rig.host.rules_apply(RuleSet(rig.bridge, peers=(peer,)))

    async def test_a_peer_that_cannot_be_reached_is_told(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        peer = Peer(IPv4Network("10.127.240.0/20"), IPv4Address("203.0.113.9"))
        assert await rig.host.routes_apply((peer,), Reach()) == Routed((peer,))
        assert await rig.host.routes_apply((), Reach()) == Routed()

    # WireGuard

    async def test_a_node_that_is_reached_by_wireguard_tells_two_keys_which_stay(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        told = await rig.host.routes_apply((), ENCRYPTED)
        assert len(set(told.keys)) == len(told.keys) == 2
        assert told.encrypted_by in ("kernel", "wireguard-go")
        assert await rig.host.routes_apply((), ENCRYPTED) == told
        assert await rig.host.routes_apply((), replace(ENCRYPTED, step=2)) == told
        assert await rig.host.routes_apply((), Reach()) == Routed()

    async def test_who_encrypts_has_no_way_to_who_does_not(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        in_clear = Peer(IPv4Network("10.127.240.0/20"), IPv4Address("192.0.2.9"))
        sealed = replace(in_clear, underlay=Underlay.WIREGUARD, keys=KEYS, port=7084)
        assert (await rig.host.routes_apply((in_clear,), ENCRYPTED)).lacking == (in_clear,)
        assert (await rig.host.routes_apply((sealed,), Reach())).lacking == (sealed,)
        keyless = replace(sealed, keys=(), port=0)
        assert (await rig.host.routes_apply((keyless,), ENCRYPTED)).lacking == (keyless,)

    async def test_keys_and_ports_are_what_they_must_be_and_nobody_has_anothers(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        peer = Peer(
            IPv4Network("10.127.240.0/20"), IPv4Address("192.0.2.9"), None, Underlay.WIREGUARD, KEYS, ENCRYPTED.port
        )
        other = replace(peer, network=IPv4Network("10.127.224.0/20"))
        for peers in (
            (replace(peer, keys=KEYS[:1]),),
            (replace(peer, keys=(KEYS[0], "remove=true\n")),),
            (replace(peer, keys=(KEYS[0], "")),),
            (replace(peer, keys=(KEYS[0], KEYS[0])),),
            (replace(peer, port=0),),
            (replace(peer, port=65535),),
            (peer, other),
        ):
            await refused("helper-refused", rig.host.routes_apply(peers, ENCRYPTED))
            await refused("helper-refused", rig.host.rules_apply(RuleSet(rig.bridge, peers=peers)))
        for reach in (replace(ENCRYPTED, port=53), replace(ENCRYPTED, port=65535), replace(ENCRYPTED, step=-1)):
            await refused("helper-refused", rig.host.routes_apply((), reach))
        for ports in ((7084,), (53, 54), (7084, 70_000)):
            await refused("helper-refused", rig.host.rules_apply(RuleSet(rig.bridge, tunnel_ports=ports)))

    async def test_rules_that_seal_what_is_with_peers_have_no_fault(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        neighbours = [IPv4Network(f"10.127.{16 * number}.0/20") for number in (13, 14, 15)]
        peers = tuple(Peer(each, IPv4Address("192.0.2.9"), addresses.node_network(PREFIX, each)) for each in neighbours)
        for told in (peers, peers[1:], ()):
            await rig.host.rules_apply(RuleSet(rig.bridge, peers=told, tunnel_ports=ENCRYPTED.ports))
            assert await rig.host.rules_fault() == ""

    async def test_rules_for_a_full_subnet_are_taken(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        keys = [vm_key(f"vm_{number}") for number in range(1000)]
        members = tuple(rig.member(key, 2 + number, f"net_{number % 100}") for number, key in enumerate(keys))
        await rig.host.rules_apply(RuleSet(rig.bridge, members))

    # Uids

    async def test_a_key_has_one_uid_of_the_range_until_it_is_freed(self, rig: HostRig) -> None:
        uid = await rig.host.uid_take(ONE)
        assert uid in rig.uids
        assert await rig.host.uid_take(ONE) == uid
        assert await rig.host.uid_take(TWO) != uid
        await rig.host.uid_free(ONE)
        await rig.host.uid_free(ONE)

    async def test_a_key_that_is_none_is_refused(self, rig: HostRig) -> None:
        await refused("helper-refused", rig.host.uid_take("../../etc/passwd"))
        await refused("helper-refused", rig.host.uid_take("UPPERCASE222"))

    async def test_a_uid_may_come_with_a_process_that_becomes_the_vmm(self, rig: HostRig) -> None:
        await rig.host.seat_make(kvm=False)
        await rig.host.seat_make(kvm=False)
        for key in (ONE, TWO):
            uid = await rig.host.uid_take(key, seat=True)
            assert uid in rig.uids
            assert await rig.host.uid_take(key, seat=True) == uid
            await end(rig, await rig.host.vm_spawn(key, rig.argv(key), LIMITS, {}), key)

    async def test_a_uid_that_came_with_a_process_may_be_freed_unused(self, rig: HostRig) -> None:
        await rig.host.seat_make(kvm=False)
        await rig.host.uid_take(ONE, seat=True)
        await rig.host.uid_free(ONE)
        await refused("helper-refused", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))

    # VMMs

    async def test_a_vmm_runs_until_it_is_killed_and_is_reaped_once(self, rig: HostRig) -> None:
        spawned = await start(rig)
        assert spawned.confinement in ("cgroup-v2", "cgroup-v1", "rlimits")
        assert not has_ended(spawned)
        assert await end(rig, spawned) == -signal.SIGKILL
        assert await rig.host.vm_reap(ONE, identity(spawned)) is None

    async def test_a_running_vmm_cannot_be_reaped(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await refused("vm-running", rig.host.vm_reap(ONE, identity(spawned)))
        await end(rig, spawned)

    # Fences

    async def test_a_fenced_vmm_ends_at_its_moment_and_none_begins_under_that_key(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        await rig.host.vm_fence(ONE, time.monotonic() + 10 * DEADLINE_S)
        spawned = await start(rig)
        moment = time.monotonic() + FENCE_S
        await rig.host.vm_fence(ONE, moment)
        assert await asyncio.to_thread(has_ended, spawned, DEADLINE_S)
        assert time.monotonic() >= moment
        let_go(spawned)
        assert await rig.host.vm_reap(ONE, identity(spawned)) == -signal.SIGKILL
        await refused("fenced", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))
        await rig.host.vm_fence(ONE, time.monotonic() + DEADLINE_S)
        again = await start(rig)
        await end(rig, again)

    async def test_what_was_said_last_counts(self, rig: HostRig) -> None:
        later, lifted = await start(rig, ONE), await start(rig, TWO)
        moment = time.monotonic() + FENCE_S
        for key in (ONE, TWO):
            await rig.host.vm_fence(key, moment)
        await rig.host.vm_fence(ONE, moment + FENCE_S)
        await rig.host.vm_fence(TWO, None)
        assert await asyncio.to_thread(has_ended, later, DEADLINE_S)
        assert time.monotonic() >= moment + FENCE_S
        assert not has_ended(lifted)
        let_go(later)
        await end(rig, lifted, TWO)

    async def test_a_fence_goes_with_its_uid(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        await rig.host.vm_fence(ONE, time.monotonic() - 1)
        await rig.host.uid_free(ONE)
        spawned = await start(rig)
        await end(rig, spawned)

    @pytest.mark.parametrize("moment", [float("nan"), float("inf"), 1e12])
    async def test_a_fence_that_is_no_moment_is_refused(self, rig: HostRig, moment: float) -> None:
        await refused("helper-refused", rig.host.vm_fence(ONE, moment))

    async def test_a_vmm_that_nobody_started_has_no_code(self, rig: HostRig) -> None:
        assert await rig.host.vm_reap(ONE, ProcessId(1, 1)) is None

    async def test_the_callers_descriptors_stay_the_callers(self, rig: HostRig) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            await rig.host.uid_take(ONE)
            argv = rig.argv(
                ONE, "-chardev", "socket,id=q0,fd=@qmp@,server=on,wait=off", "-mon", "chardev=q0,mode=control"
            )
            spawned = await rig.host.vm_spawn(ONE, argv, LIMITS, {"qmp": server.fileno()})
            os.fstat(server.fileno())
        await end(rig, spawned)

    async def test_a_vmm_needs_a_uid(self, rig: HostRig) -> None:
        await refused("helper-refused", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))

    async def test_a_key_runs_once(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await refused("helper-refused", rig.host.vm_spawn(ONE, rig.argv(), LIMITS, {}))
        await end(rig, spawned)

    async def test_what_is_not_a_vmm_of_ours_is_refused(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        for argv in (
            ("/bin/sh", "-name", rig.names.process(ONE)),
            (),
            rig.argv(TWO),
            rig.argv(ONE, "-monitor", "stdio"),
            rig.argv(ONE, "-chardev", "file,id=x,path=/tmp/x"),
            rig.argv(ONE, "-add-fd", "fd=@image@,set=1"),
        ):
            await refused("helper-refused", rig.host.vm_spawn(ONE, argv, LIMITS, {}))

    async def test_limits_that_make_no_sense_are_refused(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        for limits in (Limits(0, 1000), Limits(256 * MIB, 0), Limits(256 * MIB, 1000, pids=0)):
            await refused("helper-refused", rig.host.vm_spawn(ONE, rig.argv(), limits, {}))

    async def test_limits_of_a_running_vmm_can_be_changed_and_of_no_other(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await rig.host.vm_limit(ONE, Limits(512 * MIB, 500, pids=32))
        await refused("helper-refused", rig.host.vm_limit(ONE, Limits(0, 1000)))
        await refused("helper-refused", rig.host.vm_limit(TWO, LIMITS))
        await end(rig, spawned)
        await refused("helper-refused", rig.host.vm_limit(ONE, LIMITS))

    async def test_a_signal_never_reaches_another_process(self, rig: HostRig) -> None:
        spawned = await start(rig)
        later = replace(identity(spawned), start_time=spawned.start_time + 1)
        assert await rig.host.vm_signal(ONE, later, signal.SIGKILL) is False
        await rig.host.uid_take(TWO)
        await refused("helper-refused", rig.host.vm_signal(TWO, identity(spawned), signal.SIGKILL))
        await refused("helper-refused", rig.host.vm_signal(ONE, identity(spawned), signal.SIGUSR1))
        assert not has_ended(spawned)
        await end(rig, spawned)
        assert await rig.host.vm_signal(ONE, identity(spawned), signal.SIGKILL) is False

    async def test_a_guests_memory_can_be_read_and_is_never_anothers(self, rig: HostRig) -> None:
        await rig.host.uid_take(ONE)
        shared = ("-object", "memory-backend-memfd,id=mem,size=2M,share=on")
        spawned = await rig.host.vm_spawn(ONE, rig.argv(ONE, *shared), LIMITS, {})
        memory = await self._memory(rig, spawned)
        assert fcntl.fcntl(memory, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert not os.get_inheritable(memory)
        os.close(memory)
        later = replace(identity(spawned), start_time=spawned.start_time + 1)
        await refused("no-process", rig.host.vm_memory(ONE, later))
        await refused("helper-refused", rig.host.vm_memory(TWO, identity(spawned)))
        await rig.host.uid_take(TWO)
        await refused("helper-refused", rig.host.vm_memory(TWO, identity(spawned)))
        await refused("helper-refused", rig.host.vm_memory("../../1", identity(spawned)))
        await end(rig, spawned)

    async def _memory(self, rig: HostRig, spawned: Spawned) -> int:
        """A VMM that has just been started makes its memory in a moment."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    return await rig.host.vm_memory(ONE, identity(spawned))
                except HostError as error:
                    if error.code != "no-memory":
                        raise
                    await asyncio.sleep(0.01)

    async def test_a_vmm_without_shared_memory_has_none_to_read(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await refused("no-memory", rig.host.vm_memory(ONE, identity(spawned)))
        await end(rig, spawned)

    async def test_an_ended_process_cannot_be_placed(self, rig: HostRig) -> None:
        await refused("no-process", rig.host.cgroup_place("haproxy", ProcessId(os.getpid(), 1)))

    async def test_a_cgroups_name_is_a_word(self, rig: HostRig) -> None:
        await refused("helper-refused", rig.host.cgroup_place("../..", ProcessId(os.getpid(), 1)))

    # Listeners

    async def test_a_listener_given_at_the_start_accepts(self, rig: HostRig) -> None:
        with socket.socket(fileno=await rig.host.listen(rig.listener.address, rig.listener.port)) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0

    async def test_a_taken_port_is_told_with_a_remedy(self, rig: HostRig) -> None:
        fd = await rig.host.listen(rig.listener.address, rig.listener.port)
        with pytest.raises(HostError) as caught:
            await rig.host.listen(rig.listener.address, rig.listener.port)
        assert caught.value.code == "port-taken"
        assert "ss -ltnp" in caught.value.resolution
        os.close(fd)

    async def test_another_port_is_refused(self, rig: HostRig) -> None:
        await refused("helper-refused", rig.host.listen(rig.listener.address, rig.listener.port + 1))
        await refused("helper-refused", rig.host.listen("0.0.0.0", rig.listener.port))  # noqa: S104 - refused

    # The end of things

    async def test_a_sweep_leaves_what_is_kept_and_removes_the_rest(self, rig: HostRig) -> None:
        kept, doomed = await start(rig, ONE), await start(rig, TWO)
        doomed_uid = await rig.host.uid_take(TWO)
        swept = await rig.host.sweep(Keep({ONE: identity(kept)}))
        assert doomed.pid in swept.processes
        assert swept.uids == (doomed_uid,)
        assert await asyncio.to_thread(has_ended, doomed, DEADLINE_S)
        assert not has_ended(kept)
        let_go(doomed)
        await end(rig, kept)

    async def test_a_sweep_keeps_a_process_and_not_its_number(self, rig: HostRig) -> None:
        spawned = await start(rig)
        await rig.host.sweep(Keep({ONE: replace(identity(spawned), start_time=spawned.start_time + 1)}))
        assert await asyncio.to_thread(has_ended, spawned, DEADLINE_S)
        let_go(spawned)

    async def test_a_sweep_of_nothing_finds_nothing(self, rig: HostRig) -> None:
        await rig.host.sweep(Keep())
        swept = await rig.host.sweep(Keep())
        assert (swept.processes, swept.taps, swept.cgroups, swept.uids) == ((), (), (), ())

    async def test_an_installation_with_vms_is_not_dismantled(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        spawned = await start(rig)
        await refused("vms-left", rig.host.dismantle())
        assert not has_ended(spawned)
        await end(rig, spawned)

    async def test_after_dismantling_nothing_is_there(self, rig: HostRig) -> None:
        await rig.host.bridge_ensure(rig.bridge)
        await rig.host.rules_apply(RuleSet(rig.bridge, (rig.member(ONE, 2),)))
        await rig.host.dismantle()
        await rig.host.dismantle()
        await refused("no-bridge", rig.host.tap_open(rig.tap()))
