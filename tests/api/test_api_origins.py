"""How many connections come from one address."""

from __future__ import annotations

import pytest

from shellwego.api.origins import Origins
from shellwego.core.egress import parse_networks

BALANCERS = parse_networks(["10.0.0.5", "fd00::/64"])


def test_an_address_that_has_enough_gets_no_more_until_one_ends() -> None:
    origins = Origins(of_address=2)
    leave, other = origins.enter("192.0.2.1"), origins.enter("192.0.2.1")
    assert leave is not None
    assert other is not None
    assert origins.enter("192.0.2.1") is None
    assert origins.enter("192.0.2.2") is not None
    leave()
    assert origins.enter("192.0.2.1") is not None
    assert origins.enter("192.0.2.1") is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
    ],
)
def test_a_network_of_ipv6_is_one_and_an_address_that_is_mapped_is_itself(first: str, second: str, same: bool) -> None:
    origins = Origins(of_address=1)
    assert origins.enter(first) is not None
    assert (origins.enter(second) is None) is same


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "", "10.0.0.5", "fd00::7"])
def test_this_host_and_the_balancers_are_not_bounded(address: str) -> None:
    origins = Origins(BALANCERS, of_address=1)
    assert all(origins.enter(address) for _ in range(3))


def test_who_is_beside_a_balancer_is_none() -> None:
    origins = Origins(BALANCERS, of_address=1)
    assert origins.enter("10.0.0.6") is not None
    assert origins.enter("10.0.0.6") is None
