"""VMs that are gone, whose connections the kernel is to forget, before another VM has their address.

Theory. Answers in a connection that is remembered are let in to whoever has the address, as long as somebody at the other
end keeps it alive: nothing says that it was another VM that opened it. So before another VM has an address, the connections
that the last one opened there go, and those that it answered. This is done once the rules let that one send nothing any
more, and before it is told that the new ones are in force, so before the next VM's guest runs.

It waits until then, for nobody has the address meanwhile: a VM that sleeps finds its connections when it wakes, whoever else
comes meanwhile, and a kernel that does not forget is in the way of those only who would get a used address. Where its memory
is half full it does not wait much: somebody whose VMs come and go would fill it.

It is another VM where anything but the address is other. Who was there before this process is not known: with the first
rules go the connections of all addresses that no VM has.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
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


_MANY = 16
"""So many addresses wait however full the kernel's memory is: to look through it takes a while where it is."""

Doomed = Callable[[bytes], bool]
"""Whether an address, by its four or sixteen bytes, is one whose connections go."""


class Departed:
    """Of one installation. `forget` makes the kernel forget and `crowded` says if it has little room; `conntrack`."""

    def __init__(
        self,
        forget: Callable[[Doomed], None] = conntrack.forget_addresses,
        crowded: Callable[[], bool] = conntrack.crowded,
    ) -> None:
        self._make_forget = forget
        self._crowded = crowded
        self._holders: dict[IPv4Address, _Holder] | None = None
        """As of the rules that were told last; None: none were."""
        self._gone: dict[IPv4Address, _Holder | None] = {}
        """Addresses whose connections are still to be forgotten, and whose those are; None: that is not known."""

    def keep_to(self, bridge: Bridge, members: Iterable[Member]) -> None:
        """Have nobody meet another's connections at these members' addresses. Raises `HostError` `host-connections`: they
        would, or with the first rules that connections cannot be forgotten at all."""
        before, self._holders = self._holders, {member.ipv4: _holder(member) for member in members}
        if before is None:
            self._gone = dict.fromkeys({*bridge.network.hosts()} - {bridge.gateway} - self._holders.keys())
            self._forget(bridge, self._gone, ())
        else:
            self._follow(bridge, before)

    def change(self, bridge: Bridge, coming: Iterable[Member], leaving: Iterable[Member]) -> None:
        """As `keep_to`, where only these are others than before."""
        holders = self._holders = self._holders or {}
        before = {member.ipv4: _holder(member) for member in leaving}
        for address in before:
            holders.pop(address, None)
        holders |= {member.ipv4: _holder(member) for member in coming}
        self._follow(bridge, before)

    def _follow(self, bridge: Bridge, before: Mapping[IPv4Address, _Holder]) -> None:
        """Note who of these left, and have forgotten what somebody else would meet now."""
        holders = self._holders or {}
        for address, who in before.items():
            if holders.get(address) != who:
                # of two whose connections are left none may come back to them
                self._gone[address] = None if address in self._gone else who
        for address in [each for each, who in self._gone.items() if who is not None and holders.get(each) == who]:
            del self._gone[address]
        used = self._gone.keys() & holders.keys()
        crowded = len(self._gone) - len(used) >= _MANY and self._crowded()
        if crowded or used:
            try:
                self._forget(bridge, self._gone if crowded else used, used)
            except HostError:
                if used:
                    raise

    def _forget(self, bridge: Bridge, doomed: Collection[IPv4Address], used: Collection[IPv4Address]) -> None:
        """Those of doomed addresses; at the least of those that somebody uses."""
        try:
            try:
                self._make_forget(_of(bridge, doomed))
            except OSError as error:
                if error.errno != errno.EBUSY:  # as a connection is, in older kernels, that a device forwards by itself
                    raise
                doomed = used
                if used:
                    self._make_forget(_of(bridge, used))
            self._gone = {address: who for address, who in self._gone.items() if address not in doomed}
        except OSError as error:
            raise HostError(
                "host-connections",
                f"connections of VMs that are gone cannot be forgotten: {error.strerror or error}",
                resolution="Where it is busy, try again; else see that the kernel has it: modprobe nf_conntrack_netlink.",
            ) from error


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
