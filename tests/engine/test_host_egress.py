"""Destinations as boxes: they overlap nowhere, and hold what was written, no more and no less."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.host.egress import Box, boxes
from plasmavmc.policy import LAST_PORT, MAX_DESTINATIONS, Destination, IpProtocol

NUMBERS = {IpProtocol.ICMP: 1, IpProtocol.TCP: 6, IpProtocol.UDP: 17}
NETWORKS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(0xCB007100, 0xCB0071FF),
    st.integers(24, 32),
)
PORTED = st.builds(
    lambda network, protocol, ports: Destination(network, protocol, *sorted(ports)),
    NETWORKS,
    st.sampled_from([IpProtocol.TCP, IpProtocol.UDP]),
    st.tuples(st.sampled_from([1, 2, 80, 443, 8000, 65534, 65535]), st.sampled_from([1, 81, 443, 9000, 65535])),
)
PORTLESS = st.builds(Destination, NETWORKS, st.sampled_from([IpProtocol.ANY, IpProtocol.ICMP, IpProtocol.TCP]))
LISTS = st.lists(PORTED | PORTLESS, max_size=8)
PACKETS = st.tuples(
    st.integers(0xCB0070FE, 0xCB007201).map(IPv4Address),
    st.sampled_from([0, 1, 2, 6, 7, 17, 18, 255]),
    st.sampled_from([0, 1, 2, 79, 80, 81, 443, 444, 8000, 65534, 65535]),
)


def lets(destination: Destination, packet: tuple[IPv4Address, int, int]) -> bool:
    """As it is written."""
    address, protocol, port = packet
    if address not in destination.network:
        return False
    if destination.protocol is IpProtocol.ANY:
        return True
    ported = destination.first_port <= port <= destination.last_port
    return protocol == NUMBERS[destination.protocol] and (ported or destination.protocol is IpProtocol.ICMP)


def holds(box: Box, packet: tuple[IPv4Address, int, int]) -> bool:
    address, protocol, port = packet
    (low, high), (first, last) = box.protocols, box.ports
    return address in box.network and low <= protocol <= high and first <= port <= last


@given(LISTS, PACKETS)
def test_a_packet_is_in_one_box_if_some_destination_lets_it_pass_and_else_in_none(
    destinations: list[Destination], packet: tuple[IPv4Address, int, int]
) -> None:
    found = [box for box in boxes(destinations) if holds(box, packet)]
    assert len(found) == any(lets(each, packet) for each in destinations)


@given(LISTS)
def test_no_two_boxes_overlap(destinations: list[Destination]) -> None:
    for one, other in combinations(boxes(destinations), 2):
        apart = [
            one_side[1] < other_side[0] or other_side[1] < one_side[0]
            for one_side, other_side in zip(one[1:], other[1:], strict=True)
        ]
        assert any(apart) or not one.network.overlaps(other.network)


@given(LISTS)
def test_the_order_in_which_they_are_written_does_not_matter(destinations: list[Destination]) -> None:
    assert boxes(destinations) == boxes([*reversed(destinations), *destinations])


def test_what_says_nothing_more_is_left_out() -> None:
    everything = Destination(IPv4Network("0.0.0.0/0"))
    tls = Destination(IPv4Network("203.0.113.0/24"), IpProtocol.TCP, 443, 443)
    assert boxes([everything, tls]) == boxes([everything])
    assert boxes([everything]) == (Box(everything.network, (0, 255), (0, LAST_PORT)),)
    assert boxes([tls]) == (Box(tls.network, (6, 6), (443, 443)),)
    assert boxes([]) == ()


def test_the_most_that_one_list_can_be_is_bounded() -> None:
    nested = [
        Destination(IPv4Network(f"203.0.113.{4 * n}/31"), IpProtocol.TCP, 1 + n, 60_000 - n)
        for n in range(MAX_DESTINATIONS)
    ]
    assert len(boxes(nested)) <= 2 * MAX_DESTINATIONS**2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"first_port": -1}, "first_port"),
        ({"first_port": LAST_PORT + 1}, "first_port"),
        ({"first_port": 0, "last_port": 0}, "last_port"),
        ({"first_port": 2, "last_port": 1}, "last_port"),
        ({"last_port": LAST_PORT + 1}, "last_port"),
        ({"protocol": IpProtocol.ICMP, "first_port": 1}, "first_port"),
        ({"protocol": IpProtocol.ANY, "last_port": 1}, "first_port"),
    ],
)
def test_ports_that_make_no_sense_are_told_by_their_field(changes: dict[str, object], field: str) -> None:
    sound = Destination(IPv4Network("203.0.113.0/24"), IpProtocol.TCP)
    assert sound.fault is None
    fault = replace(sound, **changes).fault  # type: ignore[arg-type]
    assert fault is not None
    assert fault[0] == field
