"""What every network backend must do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pytest

from plasmavmc.errors import CapacityError, ConflictError
from plasmavmc.host.names import HostNames
from plasmavmc.network.backend import Attachment, NetworkBackend
from plasmavmc.network.ipam import REST_S
from plasmavmc.types import NetworkSpec, mac_of, vm_key

SUBNET = IPv4Network("10.64.16.0/29")
"""Room for five VMs."""
ROOM = 5


@dataclass(slots=True)
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True)
class NetworkRig:
    backend: NetworkBackend
    names: HostNames
    clock: FakeClock
    allowed: Callable[[], set[tuple[str, str, IPv4Address]]]
    """What the rules in force let in: tap, MAC and address of each VM."""


def key(number: int) -> str:
    return vm_key(f"vm_{number}")


def nic(number: int, network: str = "net_a", ipv4: str = "") -> NetworkSpec:
    return NetworkSpec(f"nic_{number}", network, ipv4=IPv4Address(ipv4) if ipv4 else None)


async def attach(rig: NetworkRig, number: int, spec: NetworkSpec | None = None) -> Attachment:
    """Set a VM up, and close its tap, which the contract has no use for."""
    attachment = await rig.backend.setup_tap(key(number), spec or nic(number))
    await rig.backend.admit(key(number))
    os.close(attachment.fd)
    return attachment


class NetworkContract:
    """Subclasses give the fixture `rig`, whose bridge is configured."""

    async def test_the_bridge_may_be_configured_again(self, rig: NetworkRig) -> None:
        await rig.backend.configure_bridge()

    async def test_a_vm_gets_an_address_a_gateway_and_its_own_tap(self, rig: NetworkRig) -> None:
        attachment = await rig.backend.setup_tap(key(1), nic(1))
        os.fstat(attachment.fd)
        os.close(attachment.fd)
        assert attachment.tap == rig.names.tap(key(1))
        assert attachment.lease.ipv4 == IPv4Address("10.64.16.2")
        assert attachment.lease.gateway == IPv4Address("10.64.16.1")
        assert attachment.lease.network == SUBNET
        assert attachment.lease.mac == mac_of("nic_1")

    async def test_rules_stand_when_a_vm_is_admitted(self, rig: NetworkRig) -> None:
        await rig.backend.settle()
        attachment = await rig.backend.setup_tap(key(1), nic(1))
        os.close(attachment.fd)
        assert rig.allowed() == set()
        await rig.backend.admit(key(1))
        assert rig.allowed() == {(attachment.tap, attachment.lease.mac, attachment.lease.ipv4)}

    async def test_a_wished_mac_and_address_are_given(self, rig: NetworkRig) -> None:
        spec = NetworkSpec("nic_1", "net_a", mac="02:00:00:00:00:07", ipv4=IPv4Address("10.64.16.5"))
        attachment = await attach(rig, 1, spec)
        assert (attachment.lease.mac, attachment.lease.ipv4) == ("02:00:00:00:00:07", IPv4Address("10.64.16.5"))

    async def test_two_vms_never_share_an_address(self, rig: NetworkRig) -> None:
        attachments = await asyncio.gather(*(attach(rig, number) for number in range(ROOM)))
        assert len({attachment.lease.ipv4 for attachment in attachments}) == ROOM
        assert len(rig.allowed()) == ROOM

    async def test_the_same_vm_again_is_a_conflict(self, rig: NetworkRig) -> None:
        first = await attach(rig, 1)
        with pytest.raises(ConflictError):
            await rig.backend.setup_tap(key(1), nic(1))
        assert {address for _, _, address in rig.allowed()} == {first.lease.ipv4}

    async def test_an_address_of_another_or_of_elsewhere_is_a_conflict(self, rig: NetworkRig) -> None:
        await attach(rig, 1)
        for ipv4 in ("10.64.16.2", "10.64.16.1", "10.64.16.7", "192.0.2.1"):
            with pytest.raises(ConflictError):
                await rig.backend.setup_tap(key(2), nic(2, ipv4=ipv4))
        assert (await attach(rig, 2)).lease.ipv4 == IPv4Address("10.64.16.3")

    async def test_when_addresses_run_out_it_says_so_and_keeps_nothing(self, rig: NetworkRig) -> None:
        for number in range(ROOM):
            await attach(rig, number)
        with pytest.raises(CapacityError):
            await rig.backend.setup_tap(key(ROOM), nic(ROOM))
        await rig.backend.release(key(0))
        assert (await attach(rig, ROOM)).lease.ipv4 == IPv4Address("10.64.16.2")

    async def test_release_takes_the_rules_away_and_is_idempotent(self, rig: NetworkRig) -> None:
        await attach(rig, 1)
        await rig.backend.release(key(1))
        await rig.backend.release(key(1))
        await rig.backend.release(key(2))
        assert rig.allowed() == set()

    async def test_a_released_address_rests_before_it_is_given_out_again(self, rig: NetworkRig) -> None:
        first = await attach(rig, 1)
        await rig.backend.release(key(1))
        assert (await attach(rig, 2)).lease.ipv4 != first.lease.ipv4
        rig.clock.now += REST_S + 1
        assert (await attach(rig, 3)).lease.ipv4 == first.lease.ipv4

    async def test_an_adopted_vm_keeps_its_address_and_gets_its_rules(self, rig: NetworkRig) -> None:
        address = IPv4Address("10.64.16.2")
        adopted = await rig.backend.adopt(key(1), nic(1), address)
        await rig.backend.settle()
        assert (adopted.fd, adopted.lease.ipv4) == (-1, address)
        assert rig.allowed() == {(adopted.tap, adopted.lease.mac, address)}
        assert (await attach(rig, 2)).lease.ipv4 != address

    async def test_two_vms_cannot_be_adopted_with_one_address(self, rig: NetworkRig) -> None:
        await rig.backend.adopt(key(1), nic(1), IPv4Address("10.64.16.2"))
        with pytest.raises(ConflictError):
            await rig.backend.adopt(key(2), nic(2), IPv4Address("10.64.16.2"))
