"""The network's contract on the memory drivers, and wrong drivers that it rejects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.memory import MemoryHost
from plasmavmc.host.names import HostNames, shaper_name
from plasmavmc.host.operations import RuleSet, TapRequest
from plasmavmc.network.backend import Attachment
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.network.memory import MemoryNetwork
from plasmavmc.types import NetworkSpec, RateLimit
from tests.contract.network_contract import SUBNET, FakeClock, NetworkContract, NetworkRig, attach, key, nic

CONFIGURATION = HelperConfiguration("swg_memory", 1000, 1000)
NAMES = CONFIGURATION.names


def allowed_by(rules: RuleSet | None) -> set[tuple[str, str, IPv4Address]]:
    assert rules is not None
    return {(member.tap, member.mac, member.ipv4) for member in rules.members}


def memory_rig(kind: type[MemoryNetwork]) -> NetworkRig:
    clock = FakeClock()
    backend = kind(NAMES, SUBNET, clock)
    return NetworkRig(backend, NAMES, clock, lambda: allowed_by(backend.rules))


class MortalTaps(MemoryHost):
    """Taps whose descriptors are closed at once, as the contract does, are gone at once."""

    async def tap_open(self, tap: TapRequest) -> int:
        fd = await super().tap_open(tap)
        del self.taps[tap.name]
        return fd


def bridge_rig(host: MemoryHost) -> NetworkRig:
    clock = FakeClock()
    return NetworkRig(BridgeNetwork(host, NAMES, SUBNET, clock), NAMES, clock, lambda: allowed_by(host.rules))


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


async def test_a_kernel_without_token_buckets_is_told_once_the_bridge_is_configured() -> None:
    host = MortalTaps(CONFIGURATION)
    host.lacks = "the kernel lacks the queue sch_tbf"
    backend = bridge_rig(host).backend
    assert backend.cannot_limit
    await backend.configure_bridge()
    assert backend.cannot_limit == host.lacks
    host.close()


class RestlessNetwork(MemoryNetwork):
    """Wrong: gives a released address out at once, and the same VM a second place."""

    async def release(self, key: str) -> None:
        self._members.remove(key, -1_000_000.0)
        await self.settle()

    async def setup_tap(self, key: str, spec: NetworkSpec) -> Attachment:
        await self.release(key)
        return await super().setup_tap(key, spec)


class OpenNetwork(MemoryNetwork):
    """Wrong: forgets to apply rules after an adoption."""

    async def settle(self) -> None:
        return


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (RestlessNetwork, NetworkContract.test_a_released_address_rests_before_it_is_given_out_again),
        (RestlessNetwork, NetworkContract.test_the_same_vm_again_is_a_conflict),
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
