"""Whom the bridge knows: a static neighbour for each VM, by both families, and the routes to the VMs' private networks.

Theory. A host that has every VM as a permanent neighbour asks nobody where one is, so no guest can answer in another's
place. To list a thousand of them takes the kernel longer than all the rest of an admission, and nobody else makes or flushes
permanent ones: what is there is asked for once and remembered. A change that fails halfway forgets it, and the next one asks
again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from pyroute2 import IPRoute

from plasmavmc.host.addresses import node_of
from plasmavmc.host.helper import ipv6
from plasmavmc.host.helper.netlink import absent_is_fine, bridge_index, explained
from plasmavmc.host.operations import Member

_NUD_PERMANENT = 0x80


class _Known(NamedTuple):
    """The static neighbours of the bridge of that number."""

    link: int
    macs: dict[IPv4Address | IPv6Address, str | None]


class Neighbours:
    """Of one installation's bridge."""

    def __init__(self, ip: IPRoute) -> None:
        self._ip = ip
        self._known: _Known | None = None
        self._led: set[IPv6Network] = set()
        """Networks of our own VMs that are led to the bridge."""

    def set(self, bridge: str, members: Sequence[Member]) -> None:
        """Make the static neighbours of the bridge exactly these, by both families, and lead their networks there.

        Raises:
            HostError: `no-bridge`; `host-network`, the kernel refused.
        """
        with explained(f"neighbours of {bridge}"):
            index = bridge_index(bridge)
            self._led = {node_of(member.ipv6) for member in members if member.ipv6 is not None}
            ipv6.lead_in(self._ip, index, sorted(self._led))
            self._settle(index, _neighbours_of(members))

    def change(
        self, bridge: str, members: Sequence[Member], coming: Sequence[Member], leaving: Sequence[Member]
    ) -> None:
        """As `set`, whose errors it raises, where only these are others than when they were set last."""
        known, self._known = self._known, None  # should it fail, all are set the next time
        with explained(f"neighbours of {bridge}"):
            index = bridge_index(bridge)
            added = _neighbours_of(coming)
            if known is None or known.link != index:
                self.set(bridge, members)
                return
            fresh = {node_of(member.ipv6) for member in coming if member.ipv6 is not None} - self._led
            ipv6.lead_in(self._ip, index, sorted(fresh))
            self._led |= fresh
            for address in _neighbours_of(leaving).keys() - added.keys():
                self._drop(index, address)
                known.macs.pop(address, None)
            for address, mac in added.items():
                if known.macs.get(address) != mac:
                    self._put(index, address, mac)
                    known.macs[address] = mac
        self._known = known

    def _settle(self, index: int, wanted: Mapping[IPv4Address | IPv6Address, str]) -> None:
        known, self._known = self._known, None  # should it fail, the kernel is asked again
        present = known.macs if known is not None and known.link == index else self._found(index)
        for address in present.keys() - wanted.keys():
            self._drop(index, address)
        for address, mac in wanted.items():
            if present.get(address) != mac:
                self._put(index, address, mac)
        self._known = _Known(index, dict(wanted))

    def _drop(self, index: int, address: IPv4Address | IPv6Address) -> None:
        with absent_is_fine():
            self._ip.neigh("del", dst=str(address), ifindex=index)

    def _put(self, index: int, address: IPv4Address | IPv6Address, mac: str) -> None:
        self._ip.neigh("replace", dst=str(address), lladdr=mac, ifindex=index, state=_NUD_PERMANENT)

    def _found(self, index: int) -> dict[IPv4Address | IPv6Address, str | None]:
        """Those that are there; without a MAC where the kernel found one out by itself."""
        present: dict[IPv4Address | IPv6Address, str | None] = {}
        for entry in self._ip.get_neighbours(ifindex=index):
            address = ip_address(entry.get_attr("NDA_DST"))
            if not address.is_multicast:  # of which the kernel makes entries for itself
                present[address] = entry.get_attr("NDA_LLADDR") if entry["state"] & _NUD_PERMANENT else None
        return present


def _neighbours_of(members: Collection[Member]) -> dict[IPv4Address | IPv6Address, str]:
    """MACs by the addresses of both families."""
    private = {member.ipv6: member.mac for member in members if member.ipv6 is not None}
    return {member.ipv4: member.mac for member in members} | private
