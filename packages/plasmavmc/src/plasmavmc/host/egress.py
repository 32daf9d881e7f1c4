"""What a VM may open connections to, in a form that the kernel takes. Pure.

Theory. Destinations overlap as people write them: a network by TLS, and one host in it by anything. A set of ranges in
the kernel takes no two elements that overlap. So protocol and port are put together into one number, and each
destination covers one run of such numbers. These runs are cut wherever one of them begins or ends, and for each piece
the networks that are open are merged. The result has no overlaps, whatever was written, and lists that mean the same
become the same.

A run that goes over several protocols becomes up to three rectangles of protocols and ports.

Source: protocol numbers of IANA (RFC 5237).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, collapse_addresses
from itertools import groupby, pairwise
from typing import NamedTuple

from plasmavmc.policy import LAST_PORT, Destination, IpProtocol

_NUMBERS = {IpProtocol.ICMP: 1, IpProtocol.TCP: 6, IpProtocol.UDP: 17}
_PORT_BITS = 16
_LAST_NUMBER = (255 << _PORT_BITS) | LAST_PORT


class Box(NamedTuple):
    """A network by a range of protocols, and of each of them a range of ports."""

    network: IPv4Network
    protocols: tuple[int, int]
    ports: tuple[int, int]


class _Run(NamedTuple):
    first: int
    last: int


def boxes(destinations: Sequence[Destination]) -> tuple[Box, ...]:
    """The same in boxes that do not overlap, in a stable order."""
    runs = [(_run(each), each.network) for each in destinations]
    ends = sorted({run.first for run, _ in runs} | {run.last + 1 for run, _ in runs})
    cut = [
        (_Run(first, after - 1), tuple(collapse_addresses(net for run, net in runs if run.first <= first <= run.last)))
        for first, after in pairwise(ends)
    ]
    found = []
    for networks, same in groupby(cut, key=lambda each: each[1]):
        together = [run for run, _ in same]  # without a gap, as they were cut from one row of numbers
        whole = _Run(together[0].first, together[-1].last)
        found += [Box(network, *sides) for sides in _rectangles(whole) for network in networks]
    return tuple(found)


def _run(destination: Destination) -> _Run:
    if destination.protocol is IpProtocol.ANY:
        return _Run(0, _LAST_NUMBER)
    row = _NUMBERS[destination.protocol] << _PORT_BITS
    return _Run(row | destination.first_port, row | destination.last_port)


def _rectangles(run: _Run) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """What a run covers, as ranges of protocols and ports."""
    top, first = divmod(run.first, LAST_PORT + 1)
    bottom, last = divmod(run.last, LAST_PORT + 1)
    if top == bottom:
        yield (top, top), (first, last)
        return
    if first:
        yield (top, top), (first, LAST_PORT)
        top += 1
    whole = bottom if last == LAST_PORT else bottom - 1
    if top <= whole:
        yield (top, whole), (0, LAST_PORT)
    if last != LAST_PORT:
        yield (bottom, bottom), (0, last)
