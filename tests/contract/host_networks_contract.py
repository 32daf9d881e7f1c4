"""What every `Host` must do for networks: bridges, taps, rules, and ways to other nodes."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from plasmavmc.host import addresses
from plasmavmc.host.configuration import GUARDS
from plasmavmc.host.operations import (
    Bridge,
    Peer,
    Reach,
    Routed,
    RuleSet,
    TapRequest,
    Underlay,
)
from plasmavmc.types import mac_of, vm_key
from tests.contract.host_parts import (
    ENCRYPTED,
    KEYS,
    ONE,
    PREFIX,
    SUBNET,
    TWO,
    HostRig,
    bridge_in,
    refused,
)


class HostNetworksContract:
    """Subclasses give the fixture `rig`."""

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
