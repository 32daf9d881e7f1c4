"""Whose connections the kernel is made to forget."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host.addresses import prefix_from, private_address
from plasmavmc.host.helper.departed import Departed, Doomed
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Bridge, Member
from plasmavmc.types import mac_of, vm_key

NAMES = HostNames.of("swg_departed")
BRIDGE = Bridge(NAMES.bridge, IPv4Address("10.64.16.1"), IPv4Network("10.64.16.0/20"))
ELSEWHERE = IPv4Network("10.64.32.0/20")
OUTSIDE = IPv4Address("192.0.2.2")


def private(ipv4: IPv4Address, node: IPv4Network = BRIDGE.network, number: int = 1) -> IPv6Address:
    return private_address(prefix_from("departed"), node, number, ipv4)


def member(number: int, network: str = "net") -> Member:
    key, ipv4 = vm_key(f"vm_{number}"), BRIDGE.network[number + 2]
    return Member(NAMES.tap(key), mac_of(key), ipv4, network, private(ipv4))


ONE, TWO, THREE = map(member, range(3))
OTHERS = {BRIDGE.gateway, OUTSIDE, ELSEWHERE[2], private(ELSEWHERE[2], ELSEWHERE), ip_address("fe80::1")}
"""Addresses that are no VM's of this node."""


@dataclass
class Memory:
    """Of connections, each with one address; it may refuse to forget."""

    left: set[IPv4Address | IPv6Address] = field(
        default_factory=lambda: {*OTHERS, *(each for vm in (ONE, TWO, THREE) for each in (vm.ipv4, vm.ipv6) if each)}
    )
    refusal: OSError | None = None
    times: int = 0

    def forget(self, doomed: Doomed) -> None:
        self.times += 1
        if self.refusal is not None:
            raise self.refusal
        self.left = {address for address in self.left if not doomed(address.packed)}

    def holds(self, *members: Member) -> bool:
        """Those of these VMs and of others, and nothing else."""
        return self.left == {*OTHERS, *(each for vm in members for each in (vm.ipv4, vm.ipv6) if each is not None)}


def test_with_the_first_rules_go_connections_of_all_that_no_vm_has() -> None:
    memory = Memory()
    Departed(memory.forget).keep_to(BRIDGE, [TWO])
    assert memory.holds(TWO)


def test_with_a_vm_go_its_connections_and_nothing_is_looked_at_while_all_stay() -> None:
    memory = Memory()
    departed = Departed(memory.forget)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    before = memory.times
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    departed.change(BRIDGE, [replace(ONE, egress=())], [ONE])
    departed.change(BRIDGE, [member(4)], [])
    assert memory.times == before
    departed.change(BRIDGE, [], [ONE])
    assert memory.holds(TWO, THREE)
    departed.keep_to(BRIDGE, [THREE])
    assert memory.holds(THREE)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "as a change"])
def test_the_next_vm_at_an_address_is_another_one_though_it_came_at_once(whole: bool) -> None:
    memory = Memory()
    departed = Departed(memory.forget)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    heir = replace(ONE, network_id="another", ipv6=private(ONE.ipv4, number=2))
    if whole:
        departed.keep_to(BRIDGE, [heir, TWO, THREE])
    else:
        departed.change(BRIDGE, [heir], [ONE])
    assert memory.holds(TWO, THREE)


def test_what_could_not_be_forgotten_is_with_the_next_rules() -> None:
    memory = Memory()
    departed = Departed(memory.forget)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    memory.refusal = OSError(errno.EINVAL, "no such thing")
    with pytest.raises(HostError, match="no such thing") as caught:
        departed.change(BRIDGE, [], [ONE])
    assert caught.value.code == "host-connections"
    memory.refusal = None
    departed.keep_to(BRIDGE, [TWO, THREE])
    assert memory.holds(TWO, THREE)
