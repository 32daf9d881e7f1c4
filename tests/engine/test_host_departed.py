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


def heir_of(vm: Member) -> Member:
    return replace(vm, network_id="another", ipv6=private(vm.ipv4, number=2))


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
    busy: set[IPv4Address] = field(default_factory=set)
    times: int = 0

    def forget(self, doomed: Doomed) -> None:
        self.times += 1
        if self.refusal is not None:
            raise self.refusal
        if any(doomed(address.packed) for address in self.busy):
            raise OSError(errno.EBUSY, "busy")
        self.left = {address for address in self.left if not doomed(address.packed)}

    def holds(self, *members: Member) -> bool:
        """Those of these VMs and of others, and nothing else."""
        return self.left == {*OTHERS, *(each for vm in members for each in (vm.ipv4, vm.ipv6) if each is not None)}


def test_with_the_first_rules_go_connections_of_all_that_no_vm_has() -> None:
    memory = Memory()
    Departed(memory.forget, lambda: False).keep_to(BRIDGE, [TWO])
    assert memory.holds(TWO)


def test_nothing_is_looked_at_while_all_stay_or_go_and_connections_wait_for_the_next_vm_at_the_address() -> None:
    memory = Memory()
    departed = Departed(memory.forget, lambda: False)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    before = memory.times
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    departed.change(BRIDGE, [replace(ONE, egress=())], [ONE])
    departed.change(BRIDGE, [], [ONE])
    departed.keep_to(BRIDGE, [THREE])
    assert memory.times == before
    assert memory.holds(ONE, TWO, THREE)
    departed.change(BRIDGE, [heir_of(ONE)], [])
    assert memory.holds(TWO, THREE)
    departed.change(BRIDGE, [heir_of(TWO)], [])
    assert memory.holds(THREE)
    assert memory.times == before + 2


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "as a change"])
def test_a_vm_that_slept_finds_its_connections(whole: bool) -> None:
    memory = Memory()
    departed = Departed(memory.forget, lambda: False)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    departed.change(BRIDGE, [], [ONE, TWO])
    if whole:
        departed.keep_to(BRIDGE, [ONE, THREE])
    else:
        departed.change(BRIDGE, [ONE], [])
    departed.change(BRIDGE, [heir_of(TWO)], [])
    assert memory.holds(ONE, THREE)


def test_where_there_is_little_room_those_of_many_that_went_do_not_wait() -> None:
    many = [member(number) for number in range(40)]
    memory, room = Memory({*OTHERS, *(vm.ipv4 for vm in many)}), [True]
    departed = Departed(memory.forget, lambda: not room[0])
    departed.keep_to(BRIDGE, many)
    departed.change(BRIDGE, [], many[:20])
    assert {vm.ipv4 for vm in many} <= memory.left
    room[0], memory.refusal = False, OSError(errno.EINVAL, "no such thing")
    departed.change(BRIDGE, [], many[20:21])
    memory.refusal = None
    departed.change(BRIDGE, [], many[21:22])
    assert memory.left == {*OTHERS, *(vm.ipv4 for vm in many[22:])}


def test_a_vm_that_sleeps_while_another_has_a_used_address_finds_its_connections() -> None:
    memory = Memory()
    departed = Departed(memory.forget, lambda: False)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    departed.change(BRIDGE, [], [ONE, TWO])
    departed.change(BRIDGE, [heir_of(TWO)], [])
    departed.change(BRIDGE, [ONE], [])
    assert memory.holds(ONE, THREE)
    departed.change(BRIDGE, [], [ONE])
    departed.change(BRIDGE, [heir_of(ONE)], [])
    assert memory.holds(THREE)


def test_where_there_is_little_room_those_of_many_that_went_do_not_wait_for_a_start_without_a_used_address() -> None:
    many = [member(number) for number in range(40)]
    memory = Memory({*OTHERS, *(vm.ipv4 for vm in many)})
    departed = Departed(memory.forget, lambda: True)
    departed.keep_to(BRIDGE, many)
    departed.change(BRIDGE, [], many[:10])
    departed.change(BRIDGE, [heir_of(many[0])], many[10:20])
    assert memory.left == {*OTHERS, *(vm.ipv4 for vm in many[20:])}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "as a change"])
def test_the_next_vm_at_an_address_is_another_one_though_it_came_at_once(whole: bool) -> None:
    memory = Memory()
    departed = Departed(memory.forget, lambda: False)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    heir = heir_of(ONE)
    if whole:
        departed.keep_to(BRIDGE, [heir, TWO, THREE])
    else:
        departed.change(BRIDGE, [heir], [ONE])
    assert memory.holds(TWO, THREE)


def test_what_cannot_be_forgotten_is_in_the_way_of_the_next_vm_at_the_address_only() -> None:
    memory = Memory()
    departed = Departed(memory.forget, lambda: False)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    memory.refusal = OSError(errno.EINVAL, "no such thing")
    departed.change(BRIDGE, [], [ONE])
    departed.change(BRIDGE, [member(4)], [])
    for _ in range(2):
        with pytest.raises(HostError, match="no such thing") as caught:
            departed.keep_to(BRIDGE, [heir_of(ONE), TWO, THREE])
        assert caught.value.code == "host-connections"
    departed.keep_to(BRIDGE, [TWO, THREE])
    memory.refusal = None
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    assert memory.holds(TWO, THREE), "of whom they are is not known any more: another had its address"


def test_connections_that_are_busy_are_in_the_way_of_nobody_else() -> None:
    memory = Memory()
    departed = Departed(memory.forget, lambda: False)
    departed.keep_to(BRIDGE, [ONE, TWO, THREE])
    departed.change(BRIDGE, [], [ONE, TWO])
    memory.busy = {ONE.ipv4}
    departed.change(BRIDGE, [heir_of(TWO)], [])
    assert TWO.ipv4 not in memory.left
    with pytest.raises(HostError):
        departed.change(BRIDGE, [heir_of(ONE)], [])
    memory.busy = set()
    departed.keep_to(BRIDGE, [heir_of(ONE), heir_of(TWO), THREE])
    assert memory.holds(THREE)


def test_of_addresses_that_no_vm_has_at_the_first_rules_connections_may_be_busy() -> None:
    memory = Memory(busy={ONE.ipv4})
    departed = Departed(memory.forget, lambda: False)
    departed.keep_to(BRIDGE, [TWO])
    with pytest.raises(HostError):
        departed.change(BRIDGE, [ONE], [])
