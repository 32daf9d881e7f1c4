"""What every network backend must do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from plasmavmc.errors import CapacityError, ConflictError
from plasmavmc.host import addresses
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Source
from plasmavmc.host.ports import Answerer, PublishedPort, PublishSite, Transport
from plasmavmc.network.backend import Attachment, NetworkBackend
from plasmavmc.policy import Destination, IpProtocol, Opening
from plasmavmc.types import NetworkSpec, mac_of, vm_key

TLS = Destination(IPv4Network("203.0.113.0/24"), IpProtocol.TCP, 443, 443)
WEB = Opening("web", IpProtocol.TCP, 80, 80)
PREFIX = IPv6Network("fd12:3456:789a::/48")
SUBNET = IPv4Network("10.64.16.0/29")
"""Room for five VMs."""
ROOM = 5
ELSEWHERE = IPv4Network("10.64.32.0/20")


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
    ports: Callable[[], set[str]]
    """Ports that are open by those rules, and where they lead: `20000 10.64.16.2:80`."""
    wipe: Callable[[], None]
    """Take the rules away, as a careless tool of the host would."""
    held: Callable[[], set[IPv4Address]]
    """Addresses that the rules in force hold to a list of destinations."""
    screened: Callable[[], set[IPv4Address]]
    """Addresses to which rules say what may be opened."""
    known: Callable[[], set[IPv6Address]]
    """VMs of other nodes that these rules know."""


def key(number: int) -> str:
    return vm_key(f"vm_{number}")


def nic(number: int, network: str = "net_a", ipv4: str = "") -> NetworkSpec:
    return NetworkSpec(f"nic_{number}", network, ipv4=IPv4Address(ipv4) if ipv4 else None)


OFFERED = PublishSite(range(20_000, 20_010))
"""What the rig's host lets VMs answer at."""


def published(*numbers: int) -> PublishedPort:
    """A port at which these VMs answer."""
    answerers = tuple(Answerer(key(number), SUBNET[number + 1], 80) for number in numbers)
    return PublishedPort(Transport.TCP, 20_000, answerers)


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

    async def test_a_released_address_is_given_out_again_when_every_other_was(self, rig: NetworkRig) -> None:
        first = await attach(rig, 0)
        await rig.backend.release(key(0))
        rig.clock.now += 86_400
        others = {(await attach(rig, number)).lease.ipv4 for number in range(1, ROOM)}
        assert first.lease.ipv4 not in others
        assert (await attach(rig, ROOM)).lease.ipv4 == first.lease.ipv4

    async def test_an_adopted_vm_keeps_its_address_and_gets_its_rules(self, rig: NetworkRig) -> None:
        address = IPv4Address("10.64.16.2")
        adopted = await rig.backend.adopt(key(1), nic(1), address)
        await rig.backend.settle()
        assert (adopted.fd, adopted.lease.ipv4) == (-1, address)
        assert rig.allowed() == {(adopted.tap, adopted.lease.mac, address)}
        assert (await attach(rig, 2)).lease.ipv4 != address

    async def test_a_vm_of_a_numbered_network_has_an_address_that_says_so(self, rig: NetworkRig) -> None:
        lease = (await attach(rig, 1, replace(nic(1), network_number=7, private_prefix=PREFIX))).lease
        assert lease.ipv6 == addresses.private_address(PREFIX, SUBNET, 7, lease.ipv4)
        assert (await attach(rig, 2, nic(2))).lease.ipv6 is None
        own = (await attach(rig, 3, replace(nic(3, "net_b"), network_number=7))).lease.ipv6
        assert own is not None
        assert addresses.prefix_of(own) == addresses.prefix_from(rig.names.key)

    async def test_an_adopted_vm_keeps_its_private_address(self, rig: NetworkRig) -> None:
        spec = replace(nic(1), network_number=7, private_prefix=PREFIX)
        adopted = await rig.backend.adopt(key(1), spec, IPv4Address("10.64.16.2"))
        assert adopted.lease.ipv6 == addresses.private_address(PREFIX, SUBNET, 7, IPv4Address("10.64.16.2"))

    async def test_rules_that_others_took_away_are_put_back(self, rig: NetworkRig) -> None:
        attachment = await attach(rig, 1)
        assert await rig.backend.heal() == ""
        rig.wipe()
        assert await rig.backend.heal()
        assert rig.allowed() == {(attachment.tap, attachment.lease.mac, attachment.lease.ipv4)}
        assert await rig.backend.heal() == ""

    async def test_a_vm_is_held_to_its_destinations_from_its_start(self, rig: NetworkRig) -> None:
        held = await attach(rig, 1, replace(nic(1), egress=(TLS,)))
        await attach(rig, 2)
        assert rig.held() == {held.lease.ipv4}

    async def test_a_change_while_a_vm_is_set_up_is_in_force_when_it_is_admitted(self, rig: NetworkRig) -> None:
        await rig.backend.make_room(nic(1))
        setup = asyncio.create_task(rig.backend.setup_tap(key(1), nic(1)))
        await asyncio.sleep(0)  # its first step is done
        await rig.backend.restrict(key(1), ())
        attachment = await setup
        os.close(attachment.fd)
        await rig.backend.admit(key(1))
        assert rig.held() == {attachment.lease.ipv4}

    async def test_what_a_vm_may_reach_is_changed_while_it_lives(self, rig: NetworkRig) -> None:
        one, other = await attach(rig, 1), await attach(rig, 2)
        await rig.backend.restrict(key(1), (TLS,))
        await rig.backend.restrict(key(2), ())
        assert rig.held() == {one.lease.ipv4, other.lease.ipv4}
        await rig.backend.restrict(key(1), None)
        assert rig.held() == {other.lease.ipv4}
        await rig.backend.restrict(key(9), (TLS,))
        await rig.backend.release(key(2))
        assert rig.held() == set()

    async def test_an_adopted_vm_is_held_as_before(self, rig: NetworkRig) -> None:
        address = IPv4Address("10.64.16.2")
        await rig.backend.adopt(key(1), replace(nic(1), egress=(TLS,)), address)
        await rig.backend.settle()
        assert rig.held() == {address}

    async def test_what_may_be_opened_to_a_vm_is_said_at_its_start_and_changed_while_it_lives(
        self, rig: NetworkRig
    ) -> None:
        one, other = await attach(rig, 1, replace(nic(1), ingress=(WEB,))), await attach(rig, 2)
        assert rig.screened() == {one.lease.ipv4}
        await rig.backend.screen(key(2), "web", ())
        assert rig.screened() == {one.lease.ipv4, other.lease.ipv4}
        await rig.backend.screen(key(1), "", None)
        await rig.backend.screen(key(9), "web", (WEB,))
        assert rig.screened() == {other.lease.ipv4}
        await rig.backend.release(key(2))
        assert rig.screened() == set()

    async def test_vms_of_other_nodes_are_known_where_a_rule_names_them(self, rig: NetworkRig) -> None:
        away, own = (addresses.private_address(PREFIX, net, 1, net[2]) for net in (ELSEWHERE, SUBNET))
        await rig.backend.recognize(
            [Source("web", away), Source("job", IPv6Address(int(away) + 1)), Source("web", own)]
        )
        await rig.backend.adopt(key(1), replace(nic(1), ingress=(WEB,)), SUBNET[2])
        await rig.backend.settle()
        assert rig.screened() == {SUBNET[2]}
        assert rig.known() == {away}, "of VMs here it knows better than it is told"
        assert rig.backend.unrecognized == 0
        await rig.backend.recognize([])
        assert rig.known() == set()

    async def test_a_published_port_is_open_while_a_vm_of_it_is_there(self, rig: NetworkRig) -> None:
        await attach(rig, 1)
        await rig.backend.publish([published(1, 2)])
        assert rig.ports() == {"20000 10.64.16.2:80"}
        await attach(rig, 2)
        assert rig.ports() == {"20000 10.64.16.2:80", "20000 10.64.16.3:80"}
        await rig.backend.release(key(1))
        assert rig.ports() == {"20000 10.64.16.3:80"}
        await rig.backend.publish([])
        assert rig.ports() == set()

    async def test_a_vm_that_is_about_to_stop_gets_nothing_new(self, rig: NetworkRig) -> None:
        await attach(rig, 1)
        await attach(rig, 2)
        await rig.backend.publish([published(1, 2)])
        await rig.backend.retire(key(1))
        await rig.backend.retire(key(9))
        assert rig.ports() == {"20000 10.64.16.3:80"}

    async def test_ports_that_this_host_does_not_offer_are_left_out(self, rig: NetworkRig) -> None:
        await attach(rig, 1)
        await rig.backend.publish([published(1), replace(published(1), number=22)])
        assert rig.ports() == {"20000 10.64.16.2:80"}

    async def test_ports_that_were_told_before_vms_are_adopted_are_open_once_they_are(self, rig: NetworkRig) -> None:
        await rig.backend.publish([published(1)])
        await rig.backend.adopt(key(1), nic(1), IPv4Address("10.64.16.2"))
        await rig.backend.settle()
        assert rig.ports() == {"20000 10.64.16.2:80"}

    async def test_two_vms_cannot_be_adopted_with_one_address(self, rig: NetworkRig) -> None:
        await rig.backend.adopt(key(1), nic(1), IPv4Address("10.64.16.2"))
        with pytest.raises(ConflictError):
            await rig.backend.adopt(key(2), nic(2), IPv4Address("10.64.16.2"))
