"""Open ports in the firewall's text: what comes in at them, and where it goes. Pure; `rules` puts it in its place.

Theory. The first packet of a connection to an address of this host looks its port up in a map, which says where a VM
answers: `doors` for a port with one, `shared` for one with several, by a slot that is drawn. Ports and VMs that come and go
are elements; the rules stay. Who sent it is left as it is where the VM is here. Where it is not, or where a VM of this host
asks (perhaps the very one that answers), the host speaks for itself, so that answers come back through it.

A packet so translated passes between VMs, and out to peers, if where it goes is in `answering`, and its answer if where it
comes from is. This is asked of every packet: what is not in it any more is closed, whatever is remembered. `ct status dnat`
is true of translations by others too; they are not in that set.

By IPv6 VMs know no way to the world but their gateway, so the host speaks to them as that, and only of VMs that it has.

Traps: `dnat` is a last word, so the slot is drawn into the packet's mark, of numbers that nobody uses, and only for ports
with several VMs. Priority: dstnat -100. A port that some program of this host listens at is answered by VMs all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from plasmavmc.host.addresses import GATEWAY
from plasmavmc.host.configuration import POOL
from plasmavmc.host.helper.nft import NamedSet
from plasmavmc.host.operations import Bridge
from plasmavmc.host.ports import OpenPort, PublishSite, Spot

SLOTS = 60
FIRST_MARK = 0x53770000
NEVER = ("127.0.0.0/8", "169.254.0.0/16", str(POOL))
"""Addresses of a host at which nothing is published: loopback, link-local, bridges of installations."""
GLOBAL6 = "2000::/3"


def port_sets(ports: Sequence[OpenPort]) -> Mapping[str, NamedSet]:
    """Sets and maps of open ports."""
    four = [(port, [_text(spot.ipv4, spot) for spot in port.taking]) for port in ports]
    six = [(port, [_text(spot.ipv6, spot) for spot in port.taking if spot.ipv6 is not None]) for port in ports]
    return {**_family_sets("", "ipv4_addr", four), **_family_sets("6", "ipv6_addr", six), **_answering(ports)}


def port_chains(site: PublishSite, held: Sequence[str], tunnels: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """Chains that let in, and what they jump to; `held`: rules for VMs that may not reach all that others may; `tunnels`:
    UDP ports at which this host hears other nodes, so that no VM ever gets what is said there."""
    here = "fib daddr type local meta l4proto { tcp, udp } jump at_port"
    return {
        "at_port": tuple(_at_port(site, held, tunnels)),
        "arriving": ("type nat hook prerouting priority -100; policy accept;", here),
        "sending": ("type nat hook output priority -100; policy accept;", f'oifname "lo" {here}'),
        "answered": (
            *_both("ct direction original {ip} daddr . meta l4proto . th dport @answering{n} accept"),
            *_both("ct direction reply {ip} saddr . meta l4proto . th sport @answering{n} accept"),
        ),
    }


def woven(chains: Mapping[str, tuple[str, ...]], bridge: Bridge) -> dict[str, tuple[str, ...]]:
    """The other chains with what open ports need of them: it comes first where packets pass, and where sources are
    translated."""
    passing, *forward = chains["forward"]
    leaving, *postrouting = chains["postrouting"]
    return {
        **chains,
        "forward": (passing, "ct status dnat jump answered", *forward),
        "postrouting": (leaving, *_spoken_for(bridge), *postrouting),
    }


def _spoken_for(bridge: Bridge) -> tuple[str, ...]:
    """For whom the host speaks."""
    to_vm = "daddr . meta l4proto . th dport @answering"
    return (
        f'ct status dnat oifname "{bridge.name}" ip saddr {bridge.network} ip {to_vm} snat ip to {bridge.gateway}',
        f'ct status dnat oifname != "{bridge.name}" ip {to_vm} snat ip to {bridge.gateway}',
        f'ct status dnat oifname "{bridge.name}" ip6 {to_vm}6 snat ip6 to {GATEWAY}',
    )


def _both(rule: str) -> tuple[str, str]:
    return rule.format(ip="ip", n=""), rule.format(ip="ip6", n="6")


def _at_port(site: PublishSite, held: Sequence[str], tunnels: Sequence[int]) -> Iterator[str]:
    yield f"ip daddr {{ {', '.join(NEVER)} }} return"
    yield f"meta nfproto ipv6 ip6 daddr != {GLOBAL6} return"
    yield f"udp dport {{ {', '.join(map(str, tunnels))} }} return"
    yield from _only_at(site.addresses)
    yield from held
    port = "meta l4proto . th dport"
    for family, number in (("ip", ""), ("ip6", "6")):
        protocol = f"meta nfproto ipv{number or 4}"
        yield f"{protocol} dnat {family} to {port} map @doors{number}"
        yield f"{protocol} {port} @several{number} meta mark set numgen random mod {SLOTS} offset {FIRST_MARK}"
        yield f"{protocol} dnat {family} to {port} . meta mark map @shared{number}"


def _only_at(addresses: Iterable[IPv4Address | IPv6Address]) -> Iterator[str]:
    """Where some are given, all others are left alone, of both families."""
    given = tuple(addresses)
    if not given:
        return
    for version, family in ((4, "ip"), (6, "ip6")):
        own = ", ".join(str(each) for each in given if each.version == version)
        yield f"{family} daddr != {{ {own} }} return" if own else f"meta nfproto ipv{version} return"


def _family_sets(suffix: str, address: str, ports: Sequence[tuple[OpenPort, Sequence[str]]]) -> dict[str, NamedSet]:
    key, value = "inet_proto . inet_service", f"{address} . inet_service"
    alone = tuple(f"{_key(port)} : {targets[0]}" for port, targets in ports if len(targets) == 1)
    several = [(port, targets) for port, targets in ports if len(targets) > 1]
    shared = tuple(
        f"{_key(port)} . {FIRST_MARK + slot:#x} : {targets[slot % len(targets)]}"
        for port, targets in several
        for slot in range(SLOTS)
    )
    return {
        f"doors{suffix}": NamedSet("map", f"{key} : {value}", alone),
        f"several{suffix}": NamedSet("set", key, tuple(_key(port) for port, _ in several)),
        f"shared{suffix}": NamedSet("map", f"{key} . mark : {value}", shared),
    }


def _answering(ports: Sequence[OpenPort]) -> dict[str, NamedSet]:
    spots = {(port.transport, spot) for port in ports for spot in port.spots}
    four = sorted({f"{spot.ipv4} . {transport} . {spot.port}" for transport, spot in spots})
    six = sorted({f"{spot.ipv6} . {transport} . {spot.port}" for transport, spot in spots if spot.ipv6 is not None})
    return {
        "answering": NamedSet("set", "ipv4_addr . inet_proto . inet_service", tuple(four)),
        "answering6": NamedSet("set", "ipv6_addr . inet_proto . inet_service", tuple(six)),
    }


def _key(port: OpenPort) -> str:
    return f"{port.transport} . {port.number}"


def _text(address: IPv4Address | IPv6Address, spot: Spot) -> str:
    return f"{address} . {spot.port}"
