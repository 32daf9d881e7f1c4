"""Addresses: lowest first, never twice, and again as late as can be; a subnet that nobody uses."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plasmavmc.errors import CapacityError
from plasmavmc.host.configuration import POOL
from plasmavmc.network.ipam import AddressPool, choose_subnet, gateway_of

SMALL = IPv4Network("10.64.0.0/28")


def test_the_first_installation_takes_the_first_subnet() -> None:
    assert choose_subnet([]) == IPv4Network("10.64.0.0/20")


def test_a_subnet_in_use_even_in_part_is_passed_over() -> None:
    taken = [IPv4Network("10.64.0.0/20"), IPv4Network("10.64.17.5/32"), IPv4Network("192.168.0.0/16")]
    assert choose_subnet(taken) == IPv4Network("10.64.32.0/20")


def test_where_all_is_in_use_it_says_so() -> None:
    with pytest.raises(CapacityError):
        choose_subnet([POOL])


FIRST_SUBNETS = list(POOL.subnets(new_prefix=20))[:40]


@given(st.lists(st.sampled_from(FIRST_SUBNETS), max_size=30))
def test_the_chosen_subnet_is_the_first_that_overlaps_nothing(taken: list[IPv4Network]) -> None:
    chosen = choose_subnet(taken)
    assert not any(chosen.overlaps(network) for network in taken)
    before = [subnet for subnet in FIRST_SUBNETS if subnet < chosen]
    assert all(any(subnet.overlaps(network) for network in taken) for subnet in before)


def test_an_address_is_given_out_again_when_nothing_else_is_left() -> None:
    pool = AddressPool(IPv4Network("10.64.0.0/30"))
    only = pool.take("one")
    pool.release("one", 1.0)
    assert pool.take("two") == only
    with pytest.raises(CapacityError):
        pool.take("three")


class Pool(RuleBasedStateMachine):
    """Random takes, releases and pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = AddressPool(SMALL)
        self.now = 0.0
        self.held: dict[str, object] = {}
        self.released: dict[object, float] = {}
        self.names = 0

    @rule()
    def take(self) -> None:
        self.names += 1
        try:
            address = self.pool.take(f"vm{self.names}")
        except CapacityError:
            assert len(self.held) == 13
            return
        assert address not in self.held.values()
        assert address in SMALL
        assert address not in (gateway_of(SMALL), SMALL.network_address, SMALL.broadcast_address)
        free = [other for other in list(SMALL)[2:-1] if other not in self.held.values()]
        assert self.released.get(address, -1.0) == min(self.released.get(other, -1.0) for other in free)
        self.held[f"vm{self.names}"] = address

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            name = data.draw(st.sampled_from(sorted(self.held)))
            self.released[self.held.pop(name)] = self.now
            self.pool.release(name, self.now)

    @rule(seconds=st.floats(0, 90))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_address_is_held_twice(self) -> None:
        assert len(set(self.held.values())) == len(self.held)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=40)
