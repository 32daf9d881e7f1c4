"""Connections that came in at open ports, taken out of the kernel's memory when their VM is gone.

Theory. Where a connection goes is decided by its first packet and remembered (connection tracking). A client that sends from
one UDP port would be sent to a VM that is gone as long as it keeps on sending, and of TCP it would never hear again. Without
the memory its next packet is a first one: it goes to a VM that is there, which refuses what it does not know.

Only what was let in here is looked at: translated, at a port that may be published, and towards a VM of an installation.
Sources: linux/netfilter/nfnetlink_conntrack.h; filters for what is told: Linux 5.8 (tuple), 5.15 (status).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import IPS_DST_NAT, NFCTAttrTuple, NFCTSocket

from plasmavmc.errors import HostError
from plasmavmc.host.operations import RuleSet
from plasmavmc.host.ports import OpenPort, PublishSite, Transport

_NUMBERS = {Transport.TCP: socket.IPPROTO_TCP, Transport.UDP: socket.IPPROTO_UDP}
_TRANSPORTS = {int(number): transport for transport, number in _NUMBERS.items()}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


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
    """Keeps connections to the ways that there are."""

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
        if before is None:
            self._forget(wanted, None)
        else:
            for port in sorted({(way.transport, way.number) for way in before - wanted}):
                self._forget(wanted, port)
        self._ways, self._ports = wanted, rules.ports

    def _forget(self, wanted: frozenset[Way], port: tuple[Transport, int] | None) -> None:
        try:
            for family in _FAMILIES:
                with closing(NFCTSocket(family)) as link:
                    stale = [origin for origin, way in self._found(link, family, port) if way not in wanted]
                    for origin in stale:
                        _delete(link, origin)
        except NetlinkError as error:
            raise HostError("host-connections", f"connections at published ports: {error}") from error

    def _found(
        self, link: NFCTSocket, family: int, port: tuple[Transport, int] | None
    ) -> Iterator[tuple[NFCTAttrTuple, Way]]:
        if port is None:
            entries = link.dump(status=IPS_DST_NAT, status_mask=IPS_DST_NAT)
        else:
            entries = link.dump(tuple_orig=NFCTAttrTuple(family=family, proto=_NUMBERS[port[0]], dport=port[1]))
        for entry in entries:
            if not (entry.get_attr("CTA_STATUS") or 0) & IPS_DST_NAT:
                continue
            origin, answer = (
                NFCTAttrTuple.from_netlink(family, entry.get_attr(name))
                for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY")
            )
            transport = _TRANSPORTS.get(origin.proto)
            if transport is not None and origin.dport in self._site.ports:
                yield origin, Way(transport, origin.dport, ip_address(answer.saddr), answer.sport)


def _delete(link: NFCTSocket, origin: NFCTAttrTuple) -> None:
    try:
        link.entry("del", tuple_orig=origin)
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # it ended by itself
            raise
