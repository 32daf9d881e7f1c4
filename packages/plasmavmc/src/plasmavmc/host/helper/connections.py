"""Connections that came in at open ports, taken out of the kernel's memory when their VM is gone.

Theory. Where a connection goes is decided by its first packet and remembered (connection tracking). A client that sends from
one UDP port would be sent to a VM that is gone as long as it keeps on sending, and of TCP it would never hear again. Without
the memory its next packet is a first one: it goes to a VM that is there, which refuses what it does not know.

Only what was let in here is looked at: translated, at a port that may be published, and towards a VM of an installation.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from typing import NamedTuple

from plasmavmc.errors import HostError
from plasmavmc.host.helper import conntrack
from plasmavmc.host.helper.conntrack import Entry
from plasmavmc.host.operations import RuleSet
from plasmavmc.host.ports import OpenPort, PublishSite, Transport

_NUMBERS = {Transport.TCP: int(socket.IPPROTO_TCP), Transport.UDP: int(socket.IPPROTO_UDP)}
_WITH_PORTS = frozenset(_NUMBERS.values())


class Way(NamedTuple):
    """From a port of this host to where a VM answers."""

    transport: Transport
    number: int
    address: IPv4Address | IPv6Address
    port: int


def ways_of(rules: RuleSet) -> frozenset[Way]:
    """All ways that connections may take."""
    return frozenset(
        Way(open_.transport, open_.number, address, spot.port)
        for open_ in rules.ports
        for spot in open_.spots
        for address in (spot.ipv4, spot.ipv6)
        if address is not None
    )


class Connections:
    """Keeps connections to the ways that there are. The kernel forgets the others (`conntrack`)."""

    def __init__(self, site: PublishSite) -> None:
        self._site = site
        self._ways: frozenset[Way] | None = None
        """Those that there were; None: that is not known, as at the start."""
        self._ports: tuple[OpenPort, ...] = ()
        """Whose they were."""

    def keep_to(self, rules: RuleSet) -> None:
        """Forget the connections whose way is none of these rules'. Raises `HostError` `host-connections`."""
        if not self._site.allowed:
            return
        if self._ways is not None and rules.ports == self._ports:
            return
        before, wanted = self._ways, ways_of(rules)
        self._ways = None  # should it fail, all are looked at the next time
        lost = None if before is None else frozenset((way.transport, way.number) for way in before - wanted)
        if lost is None or lost:
            self._forget(wanted, lost)
        self._ways, self._ports = wanted, rules.ports

    def _forget(self, ways: frozenset[Way], ports: frozenset[tuple[Transport, int]] | None) -> None:
        """Those at these ports, or at all that may be published, that go none of these ways."""
        kept = {(_NUMBERS[way.transport], way.number, way.address.packed, way.port) for way in ways}
        looked_at = {
            (_NUMBERS[transport], number)
            for transport, number in (product(Transport, self._site.ports) if ports is None else ports)
        }

        def doomed(entry: Entry) -> bool:
            protocol = entry.protocol
            if protocol not in _WITH_PORTS or (protocol, entry.port) not in looked_at:
                return False
            return (protocol, entry.port, entry.answerer, entry.answering_port) not in kept

        try:
            conntrack.forget_led(doomed)
        except OSError as error:
            raise HostError(
                "host-connections", f"connections at published ports cannot be forgotten: {error.strerror or error}"
            ) from error
