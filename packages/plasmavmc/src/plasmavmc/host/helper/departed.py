"""VMs that are gone, whose connections the kernel is to forget, before another VM has their address.

Theory. Answers in a connection that is remembered are let in to whoever has the address, as long as somebody at the other
end keeps it alive: nothing says that it was another VM that opened it. So with a VM go the connections that it opened, and
those that it answered. This is done once the rules let it send nothing any more, and before it is told that they are in
force, so before the next VM's guest runs.

It is another VM where anything but the address is other. Who was there before this process is not known: with the first
rules go the connections of all addresses that no VM has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from plasmavmc.errors import HostError
from plasmavmc.host.addresses import node_mark
from plasmavmc.host.helper import conntrack
from plasmavmc.host.operations import Bridge, Member


class _Holder(NamedTuple):
    """Who has an address."""

    tap: str
    mac: str
    network_id: str
    ipv6: IPv6Address | None


Doomed = Callable[[bytes], bool]
"""Whether an address, by its four or sixteen bytes, is one whose connections go."""


class Departed:
    """Of one installation. `forget` makes the kernel forget, as `conntrack` does."""

    def __init__(self, forget: Callable[[Doomed], None] = conntrack.forget) -> None:
        self._make_forget = forget
        self._holders: dict[IPv4Address, _Holder] | None = None
        """As of the rules that were told last; None: none were."""
        self._gone: set[IPv4Address] = set()
        """Addresses whose connections are still to be forgotten."""

    def keep_to(self, bridge: Bridge, members: Iterable[Member]) -> None:
        """Have connections remembered of these members' only. Raises `HostError` `host-connections`."""
        before, self._holders = self._holders, {member.ipv4: _holder(member) for member in members}
        if before is None:
            self._gone = {*bridge.network.hosts()} - {bridge.gateway} - self._holders.keys()
        else:
            self._gone |= {address for address, who in before.items() if self._holders.get(address) != who}
        self._forget(bridge)

    def change(self, bridge: Bridge, coming: Iterable[Member], leaving: Iterable[Member]) -> None:
        """As `keep_to`, where only these are others than before."""
        holders = self._holders or {}
        before = {member.ipv4: _holder(member) for member in leaving}
        for address in before:
            holders.pop(address, None)
        holders |= {member.ipv4: _holder(member) for member in coming}
        self._gone |= {address for address, who in before.items() if holders.get(address) != who}
        self._forget(bridge)

    def _forget(self, bridge: Bridge) -> None:
        if not self._gone:
            return
        try:
            self._make_forget(_of(bridge, self._gone))
        except OSError as error:
            raise HostError(
                "host-connections",
                f"connections of VMs that are gone cannot be forgotten: {error.strerror or error}",
                resolution="See that the kernel has nf_conntrack_netlink: modprobe nf_conntrack_netlink.",
            ) from error
        self._gone = set()


def _holder(member: Member) -> _Holder:
    return _Holder(member.tap, member.mac, member.network_id, member.ipv6)


def _of(bridge: Bridge, gone: Iterable[IPv4Address]) -> Doomed:
    """Whether an address is one of these, or a private one of this node that is made of it."""
    packed = frozenset(address.packed for address in gone)
    node = node_mark(bridge.network).packed

    def doomed(address: bytes) -> bool:
        if len(address) == len(node):
            return address[0] == node[0] and address[6:8] == node[6:8] and address[12:] in packed
        return address in packed

    return doomed
