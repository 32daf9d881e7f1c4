"""May these ports of this host be opened, to these addresses? Pure; as `checks`.

What the unprivileged side could gain by a lie is bounded by what root said at the start: another program's port, root's own
above all, is never sent elsewhere, and what comes in is sent to a VM of this platform or nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from plasmavmc.host.helper.checks import refusal
from plasmavmc.host.operations import Member, RuleSet
from plasmavmc.host.ports import OpenPort, PortName, PublishSite, Spot, within

MAX_PORTS = 10_000
MAX_SPOTS = 60
"""Of one port, and as many that end."""
MAX_PORT = 65_535


def check_ports(rules: RuleSet, site: PublishSite) -> None:
    """Refuse ports that are not root's to give, given twice, or that lead elsewhere than to members and VMs of peers."""
    if len(rules.ports) > MAX_PORTS:
        raise refusal("ports", f"{len(rules.ports)} are more than {MAX_PORTS}")
    if len({(port.transport, port.number) for port in rules.ports}) != len(rules.ports):
        raise refusal("ports", "one is there twice")
    members = {member.ipv4: member for member in rules.members}
    is_peers, gateways = within(peer.network for peer in rules.peers), {peer.gateway for peer in rules.peers}
    _check_published(rules.published)
    for port in rules.ports:
        _check_port(port, site)
        for spot in port.spots:
            _check_spot(spot, members.get(spot.ipv4), away=is_peers(spot.ipv4) and spot.ipv4 not in gateways)


def _check_published(ports: Sequence[PortName]) -> None:
    if len(ports) > MAX_PORTS + 1:  # and the one of edges
        raise refusal("published ports", f"{len(ports)} are more than {MAX_PORTS}")
    if len(set(ports)) != len(ports):
        raise refusal("published ports", "one is there twice")
    for port in ports:
        if not 1 <= port.number <= MAX_PORT:
            raise refusal("a published port", f"{port.number} is no port of a host")


def _check_port(port: OpenPort, site: PublishSite) -> None:
    if port.number not in site.ports:
        raise refusal("a port", f"{port.number} is not one that may be published here")
    if max(len(port.taking), len(port.ending)) > MAX_SPOTS:
        raise refusal("a port", f"{port.number} leads to more than {MAX_SPOTS} VMs")
    if len(set(port.taking)) != len(port.taking):
        raise refusal("a port", f"{port.number} leads to one VM twice")


def _check_spot(spot: Spot, member: Member | None, *, away: bool) -> None:
    """`member` has its address; `away`: a VM of a peer may have it."""
    if not 1 <= spot.port <= MAX_PORT:
        raise refusal("a port", f"{spot.port} is no port of a VM")
    if member is not None and spot.ipv6 in (None, member.ipv6):
        return
    if not away or spot.ipv6 is not None:
        raise refusal("a port", f"{spot.ipv4} is neither a member's address nor one of a peer's VM")
