"""The network's contract on the memory drivers, and wrong drivers that it rejects."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from itertools import islice

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host import addresses
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.memory import MemoryHost
from plasmavmc.host.names import HostNames, shaper_name
from plasmavmc.host.operations import MAX_SOURCES, Guarding, Peer, Reach, RuleSet, Source, TapRequest, Underlay
from plasmavmc.host.ports import PublishedPort
from plasmavmc.network.backend import Attachment
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.network.memory import MemoryNetwork
from plasmavmc.policy import Egress, Ingress
from plasmavmc.types import NetworkSpec, NetworkUsage, RateLimit
from tests.contract.network_contract import (
    OFFERED,
    PREFIX,
    SUBNET,
    TLS,
    WEB,
    FakeClock,
    NetworkContract,
    NetworkRig,
    attach,
    key,
    nic,
)

CONFIGURATION = HelperConfiguration("swg_memory", 1000, 1000, publish=OFFERED)
NAMES = CONFIGURATION.names


def allowed_by(rules: RuleSet | None) -> set[tuple[str, str, IPv4Address]]:
    assert rules is not None
    return {(member.tap, member.mac, member.ipv4) for member in rules.members}


def open_by(rules: RuleSet | None) -> set[str]:
    assert rules is not None
    return {f"{port.number} {spot.ipv4}:{spot.port}" for port in rules.ports for spot in port.taking}


def held_by(rules: RuleSet | None) -> set[IPv4Address]:
    assert rules is not None
    return {member.ipv4 for member in rules.members if member.egress is not None}


def screened_by(rules: RuleSet | None) -> set[IPv4Address]:
    assert rules is not None
    return {member.ipv4 for member in rules.members if member.ingress is not None}


def known_by(rules: RuleSet | None) -> set[IPv6Address]:
    assert rules is not None
    return {source.ipv6 for source in rules.sources}


def memory_rig(kind: type[MemoryNetwork]) -> NetworkRig:
    clock = FakeClock()
    backend = kind(NAMES, SUBNET, clock, publish=OFFERED)

    def wipe() -> None:
        backend.wiped, backend.rules = "all of it", None

    looks = (lambda: allowed_by(backend.rules), lambda: open_by(backend.rules))
    policies = (lambda: held_by(backend.rules), lambda: screened_by(backend.rules))
    return NetworkRig(backend, NAMES, clock, *looks, wipe, *policies, lambda: known_by(backend.rules))


class MortalTaps(MemoryHost):
    """Taps whose descriptors are closed at once, as the contract does, are gone at once."""

    async def tap_open(self, tap: TapRequest) -> int:
        fd = await super().tap_open(tap)
        del self.taps[tap.name]
        return fd


def bridge_rig(host: MemoryHost) -> NetworkRig:
    clock = FakeClock()

    def wipe() -> None:
        host.wiped, host.rules = "all of it", None

    backend = BridgeNetwork(host, NAMES, SUBNET, clock, publish=OFFERED)
    looks = (lambda: allowed_by(host.rules), lambda: open_by(host.rules))
    policies = (lambda: held_by(host.rules), lambda: screened_by(host.rules))
    return NetworkRig(backend, NAMES, clock, *looks, wipe, *policies, lambda: known_by(host.rules))


class TestMemoryNetwork(NetworkContract):
    @pytest.fixture
    async def rig(self) -> NetworkRig:
        rig = memory_rig(MemoryNetwork)
        await rig.backend.configure_bridge()
        return rig


class TestBridgeNetworkOnMemoryHost(NetworkContract):
    @pytest.fixture
    async def rig(self) -> AsyncIterator[NetworkRig]:
        host = MortalTaps(CONFIGURATION)
        rig = bridge_rig(host)
        await rig.backend.configure_bridge()
        yield rig
        host.close()


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_holds_a_vm_back_is_taken_away_with_it_also_after_a_restart(restarted: bool) -> None:
    host = MortalTaps(CONFIGURATION)
    rig = bridge_rig(host)
    await rig.backend.configure_bridge()
    spec = replace(nic(1), transmit=RateLimit(bytes_per_second=1_000_000))
    attachment = await attach(rig, 1, spec)
    await attach(rig, 2, replace(nic(2), receive=RateLimit(bytes_per_second=1_000_000)))
    assert host.shapers == {shaper_name(attachment.tap)}
    if restarted:
        rig = bridge_rig(host)
        await rig.backend.adopt(key(1), spec, attachment.lease.ipv4)
        await rig.backend.settle()
    await rig.backend.release(key(1))
    assert host.shapers == set()
    host.close()


async def test_what_holds_a_vm_back_is_taken_away_where_the_rules_are_refused_and_tried_again_where_it_is_not() -> None:
    host = MortalTaps(CONFIGURATION)
    rig = bridge_rig(host)
    await rig.backend.configure_bridge()
    spec = replace(nic(1), transmit=RateLimit(bytes_per_second=1_000_000))
    rules, forget = host.rules_apply, host.tap_forget
    for operation in ("rules_apply", "tap_forget"):
        await attach(rig, 1, spec)
        assert host.shapers
        setattr(host, operation, refuse)
        with pytest.raises(HostError, match="not now"):
            await rig.backend.release(key(1))
        assert bool(host.shapers) == (operation == "tap_forget")
        host.rules_apply, host.tap_forget = rules, forget  # type: ignore[method-assign]
        await rig.backend.release(key(1))
        assert not host.shapers
    host.close()


async def test_what_the_host_refused_of_a_vm_does_not_come_into_force_later() -> None:
    host = MortalTaps(CONFIGURATION)
    rig = bridge_rig(host)
    await rig.backend.configure_bridge()
    await attach(rig, 1)
    apply = host.rules_apply
    host.rules_apply = refuse  # type: ignore[method-assign]
    with pytest.raises(HostError, match="not now"):
        await rig.backend.restrict(key(1), ())
    with pytest.raises(HostError, match="not now"):
        await rig.backend.screen(key(1), "web", (WEB,))
    host.rules_apply = apply  # type: ignore[method-assign]
    await attach(rig, 2)
    assert (rig.held(), rig.screened()) == (set(), set())
    host.close()


async def test_what_was_refused_of_a_vm_that_is_gone_is_not_taken_from_the_next_of_its_key() -> None:
    host = MortalTaps(CONFIGURATION)
    rig = bridge_rig(host)
    await rig.backend.configure_bridge()
    await attach(rig, 1)
    apply, asked, go_on = host.rules_apply, asyncio.Event(), asyncio.Event()

    async def hesitant(_asked: object) -> None:
        asked.set()
        await go_on.wait()
        host.rules_apply = apply  # type: ignore[method-assign]
        raise HostError("host-network", "not now")

    host.rules_apply = hesitant  # type: ignore[method-assign]
    opening = asyncio.create_task(rig.backend.restrict(key(1), (TLS,)))
    await asked.wait()
    ending = asyncio.create_task(rig.backend.release(key(1)))
    await settled()
    beginning = asyncio.create_task(rig.backend.setup_tap(key(1), replace(nic(1), egress=(TLS,))))
    attachment = await beginning
    os.close(attachment.fd)
    go_on.set()
    with pytest.raises(HostError, match="not now"):
        await opening
    await ending
    await rig.backend.admit(key(1))
    assert rig.held() == {attachment.lease.ipv4}
    host.close()


async def refuse(_asked: object) -> None:
    raise HostError("host-network", "not now")


async def test_a_kernel_without_token_buckets_is_told_once_the_bridge_is_configured() -> None:
    host = MortalTaps(CONFIGURATION)
    host.lacks = "the kernel lacks the queue sch_tbf"
    backend = bridge_rig(host).backend
    assert backend.cannot_limit
    await backend.configure_bridge()
    assert backend.cannot_limit == host.lacks
    host.close()


async def test_how_taps_are_guarded_is_told_once_the_bridge_is_configured() -> None:
    host = MortalTaps(CONFIGURATION)
    host.guarding = Guarding("clsact", "tcx: Invalid argument")
    backend = bridge_rig(host).backend
    assert backend.guarding.lack
    await backend.configure_bridge()
    assert backend.guarding == host.guarding
    host.close()


@pytest.mark.parametrize("make", [bridge_rig, lambda _: memory_rig(MemoryNetwork)])
async def test_vms_of_other_nodes_that_are_too_many_to_know_are_counted(
    make: Callable[[MemoryHost], NetworkRig],
) -> None:
    host = MemoryHost(CONFIGURATION)
    rig = make(host)
    await rig.backend.configure_bridge()
    await rig.backend.settle()
    nodes = [net for net in IPv4Network("10.64.0.0/11").subnets(new_prefix=20) if not net.overlaps(SUBNET)]
    places = ((net, net[number]) for net in nodes for number in range(2, 1000))
    away = [addresses.private_address(PREFIX, net, 1, ipv4) for net, ipv4 in islice(places, MAX_SOURCES + 3)]
    await rig.backend.recognize([Source("web", each) for each in away])
    assert (len(rig.known()), rig.backend.unrecognized) == (0, 0), "no rule names them"
    await attach(rig, 1, replace(nic(1), ingress=(WEB,)))
    assert (len(rig.known()), rig.backend.unrecognized) == (MAX_SOURCES, 3)
    await rig.backend.recognize([Source("web", each) for each in away[3:]])
    assert (len(rig.known()), rig.backend.unrecognized) == (MAX_SOURCES, 0)
    host.close()


async def test_what_passed_a_vms_tap_is_told_while_it_has_one() -> None:
    host = MemoryHost(CONFIGURATION)
    rig = bridge_rig(host)
    await rig.backend.configure_bridge()
    attachment = await attach(rig, 1)
    host.traffic[attachment.tap] = NetworkUsage(1, 60, 2, 120, {"arp": 3})
    assert await rig.backend.usage([key(2), key(1)]) == {key(1): host.traffic[attachment.tap]}
    await rig.backend.release(key(1))
    assert await rig.backend.usage([key(1)]) == {}
    host.close()


async def test_taps_are_made_ahead_when_idle_until_there_are_enough() -> None:
    host = MortalTaps(CONFIGURATION)
    backend = BridgeNetwork(host, NAMES, SUBNET, FakeClock(), idle_s=0)
    await backend.configure_bridge()
    await settled()
    assert host.made_ahead == 2
    attachment = await backend.setup_tap(key(1), nic(1))
    os.close(attachment.fd)
    await settled()
    assert host.made_ahead == 1, "none while a VM starts"
    await backend.admit(key(1))
    await settled()
    assert host.made_ahead == 2
    host.close()


async def settled() -> None:
    """Everything that waits for no time has been done."""
    for _ in range(20):
        await asyncio.sleep(0)


class RestlessNetwork(MemoryNetwork):
    """Wrong: gives a released address out at once, and the same VM a second place."""

    async def release(self, key: str) -> None:
        pool = self._members._pool
        if (address := pool._held.get(key)) is not None:
            pool._ahead.appendleft(address)
        self._members.remove(key, 0.0)
        await self.settle()

    async def setup_tap(self, key: str, spec: NetworkSpec) -> Attachment:
        await self.release(key)
        return await super().setup_tap(key, spec)


class CarelessNetwork(MemoryNetwork):
    """Wrong: says that it put the rules back, and does not."""

    async def heal(self) -> str:
        return self.wiped


class LaxNetwork(MemoryNetwork):
    """Wrong: notes what a VM may reach, and what may reach it, and does not hold anybody to that."""

    async def restrict(self, key: str, egress: Egress) -> None:
        self._members.restrict(key, egress)

    async def screen(self, key: str, identity: str, ingress: Ingress) -> None:
        self._members.screen(key, identity, ingress)

    async def recognize(self, sources: Sequence[Source]) -> None:
        self._members.recognize(sources)


class HesitantNetwork(MemoryNetwork):
    """Wrong: lets others go first before it enters a VM."""

    async def setup_tap(self, key: str, spec: NetworkSpec, *, opened: bool = True) -> Attachment:
        await asyncio.sleep(0)
        return await super().setup_tap(key, spec, opened=opened)


class StubbornNetwork(MemoryNetwork):
    """Wrong: opens whatever it is told, and sends to VMs that are about to stop."""

    async def publish(self, ports: Sequence[PublishedPort]) -> None:
        self._members.published.publish(ports)
        await self.settle()

    async def retire(self, key: str) -> None:
        return


class OpenNetwork(MemoryNetwork):
    """Wrong: forgets to apply rules after an adoption."""

    async def settle(self) -> None:
        return


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (StubbornNetwork, NetworkContract.test_a_vm_that_is_about_to_stop_gets_nothing_new),
        (StubbornNetwork, NetworkContract.test_ports_that_this_host_does_not_offer_are_left_out),
        (RestlessNetwork, NetworkContract.test_a_released_address_is_given_out_again_when_every_other_was),
        (RestlessNetwork, NetworkContract.test_the_same_vm_again_is_a_conflict),
        (CarelessNetwork, NetworkContract.test_rules_that_others_took_away_are_put_back),
        (HesitantNetwork, NetworkContract.test_a_change_while_a_vm_is_set_up_is_in_force_when_it_is_admitted),
        (LaxNetwork, NetworkContract.test_what_a_vm_may_reach_is_changed_while_it_lives),
        (LaxNetwork, NetworkContract.test_what_may_be_opened_to_a_vm_is_said_at_its_start_and_changed_while_it_lives),
        (LaxNetwork, NetworkContract.test_vms_of_other_nodes_are_known_where_a_rule_names_them),
        (OpenNetwork, NetworkContract.test_an_adopted_vm_keeps_its_address_and_gets_its_rules),
    ],
)
async def test_a_wrong_network_is_rejected(
    wrong: type[MemoryNetwork], behaviour: Callable[[NetworkContract, NetworkRig], Awaitable[None]]
) -> None:
    rig = memory_rig(wrong)
    await rig.backend.configure_bridge()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await behaviour(NetworkContract(), rig)


async def test_without_ipv6_on_the_host_vms_have_none_and_it_is_told() -> None:
    host = MortalTaps(CONFIGURATION)
    host.lacks_ipv6 = "the kernel has no IPv6"
    rig = bridge_rig(host)
    await rig.backend.configure_bridge()
    assert rig.backend.lacks_ipv6 == host.lacks_ipv6
    assert (await attach(rig, 1, replace(nic(1), network_number=7))).lease.ipv6 is None
    host.close()


class FailingTaps(MemoryHost):
    async def tap_open(self, tap: TapRequest) -> int:
        raise HostError("host-network", "no tap today")


async def test_a_tap_that_fails_leaves_neither_address_nor_rule() -> None:
    host = FailingTaps(CONFIGURATION)
    rig = bridge_rig(host)
    await rig.backend.configure_bridge()
    await rig.backend.settle()
    with pytest.raises(HostError):
        await rig.backend.setup_tap(key(1), nic(1))
    assert rig.allowed() == set()
    await rig.backend.adopt(key(2), nic(2), IPv4Address("10.64.16.2"))


class CountingHost(MortalTaps):
    loads = 0

    async def rules_apply(self, rules: RuleSet) -> None:
        self.loads += 1
        await super().rules_apply(rules)


async def test_vms_that_come_together_share_a_load_of_rules() -> None:
    host = CountingHost(CONFIGURATION)
    rig = bridge_rig(host)
    await rig.backend.configure_bridge()
    await attach(rig, 0)
    before = host.loads
    for number in range(1, 5):
        await rig.backend.adopt(key(number), nic(number), IPv4Address(f"10.64.16.{2 + number}"))
    await rig.backend.settle()
    assert host.loads == before + 1


async def test_running_vms_keep_their_rules_until_all_are_adopted() -> None:
    """A restart of the platform: the rules of its last life are in force, and one VM ends while another is adopted."""
    host = CountingHost(CONFIGURATION)
    before = bridge_rig(host)
    await before.backend.configure_bridge()
    await attach(before, 1)
    await attach(before, 2)
    in_force = before.allowed()
    after = bridge_rig(host)
    await after.backend.configure_bridge()
    await after.backend.adopt(key(1), nic(1), IPv4Address("10.64.16.2"))
    await after.backend.release(key(1))
    assert after.allowed() == in_force
    await after.backend.adopt(key(2), nic(2), IPv4Address("10.64.16.3"))
    await after.backend.settle()
    assert after.allowed() == {each for each in in_force if each[2] == IPv4Address("10.64.16.3")}


def test_names_fit_where_they_must() -> None:
    names = HostNames.of("swg_0123456789")
    assert len(names.tap(key(1))) == 15
    assert len(names.bridge) <= 15


PORT = 7084
KEYS = tuple(b64encode(bytes([number]) * 32).decode() for number in (1, 2))
IN_CLEAR = Peer(IPv4Network("10.64.32.0/20"), IPv4Address("192.0.2.9"))
SEALED = Peer(IPv4Network("10.64.48.0/20"), IPv4Address("192.0.2.8"), None, Underlay.WIREGUARD, KEYS, PORT)


def reached_by(host: MemoryHost, reach: Reach) -> BridgeNetwork:
    return BridgeNetwork(host, NAMES, SUBNET, FakeClock(), reach=reach)


async def test_a_node_that_encrypts_has_rules_that_keep_in_what_would_go_to_any_node_in_clear() -> None:
    host = MortalTaps(CONFIGURATION)
    network = reached_by(host, Reach(Underlay.WIREGUARD, port=PORT))
    await network.configure_bridge()
    await network.settle()
    assert await network.connect((IN_CLEAR, SEALED)) == (IN_CLEAR,)
    assert host.rules is not None
    assert (host.rules.peers, host.rules.tunnel_ports) == ((IN_CLEAR, SEALED), (PORT, PORT + 1))


async def test_a_node_that_does_not_lets_none_in_that_would() -> None:
    host = MortalTaps(CONFIGURATION)
    network = reached_by(host, Reach())
    await network.configure_bridge()
    await network.settle()
    assert await network.connect((IN_CLEAR, SEALED)) == (SEALED,)
    assert host.rules is not None
    assert (host.rules.peers, host.rules.tunnel_ports, network.keys) == ((IN_CLEAR,), (), ())


async def test_keys_are_known_from_the_start_and_changed_where_a_later_look_finds_it_time() -> None:
    host = MortalTaps(CONFIGURATION)
    network = reached_by(host, Reach(Underlay.WIREGUARD, port=PORT))
    await network.configure_bridge()
    first = network.keys
    assert (len(first), network.encrypted_by) == (2, "kernel")
    await network.connect((SEALED,), 1)
    assert (network.keys[0] == first[0], network.keys[1] == first[1]) == (True, False)
    host.reach = Reach()
    await network.heal_tunnels()
    assert host.reach == Reach(Underlay.WIREGUARD, port=PORT, step=1), "it looks again by itself"


async def test_a_node_on_which_nobody_encrypts_does_not_start() -> None:
    host = MortalTaps(CONFIGURATION)
    host.encrypted_by = ""
    with pytest.raises(HostError) as caught:
        await reached_by(host, Reach(Underlay.WIREGUARD, port=PORT)).configure_bridge()
    assert caught.value.code == "no-wireguard"
