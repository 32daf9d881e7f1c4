"""The part of the firewall that says what a VM may open connections to outside of its network. Pure.

Theory. Each list of destinations has a number, and VMs with the same list share it: a map gives the number of who sends, and
one look-up in a set of ranges says whether number, destination, protocol and port are in it. So a VM more with a list that
is known is two elements, another list its own elements, and the chain is the same for any. It is asked of every packet, so
what a list closes is cut, also where a connection is open; only replies pass, to who was let in.

What is closed to all VMs is closed before (`rules`), whatever a list says.

Traps: a look-up that finds nothing ends its rule, so the mark is set to "no list" first; a packet without a port (cut short)
matches no rule that asks for one, so the chain accepts what it finds, and drops the rest; nft 1.0 finds no element
of a set of ranges again, to delete it, that was written without a range, so a network is one always.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from plasmavmc.host.egress import Box, boxes
from plasmavmc.host.operations import Member
from plasmavmc.policy import Destination

_REMEMBERED = 4096
"""Lists of a host that are looked at again with each change."""

Listed = tuple[str, ...]
"""A list of destinations as elements, without its number: equal where it means the same."""


@lru_cache(_REMEMBERED)
def listed(destinations: tuple[Destination, ...]) -> Listed:
    """A VM's list as elements."""
    return tuple(map(_text, boxes(destinations)))


def lists_of(members: Sequence[Member]) -> frozenset[Listed]:
    """Those that members have."""
    return frozenset(listed(member.egress) for member in members if member.egress is not None)


def egress_chain() -> tuple[str, ...]:
    """For what leaves from a VM to where all VMs may, by IPv4."""
    return (
        "ip saddr != @egress_held accept",
        "ct direction reply ct state established,related accept",
        "meta mark set 0",
        "meta mark set ip saddr map @egress_lists",
        "meta mark . ip daddr . meta l4proto . th dport @egress_open meta mark set 0 accept",
        "drop",
    )


def held_at_ports(bridge: str) -> tuple[str, ...]:
    """For what comes in at published ports (`rules_ports`): of them too, a VM with a list reaches only what is on it.

    By IPv6 no VM has a way to the world, and so none to a host's address there.
    """
    held = "ip saddr @egress_held"
    return (
        f'iifname "{bridge}" meta nfproto ipv6 return',
        f"{held} meta mark set 0",
        f"{held} meta mark set ip saddr map @egress_lists",
        f"{held} meta mark . ip daddr . meta l4proto . th dport != @egress_open return",
        f"{held} meta mark set 0",
    )


def _text(box: Box) -> str:
    where = f"{box.network.network_address}-{box.network.broadcast_address}"
    return f"{where} . {_range(*box.protocols)} . {_range(*box.ports)}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
