"""The part of the firewall that says what VMs of a network may open to one of them: security groups. Pure.

Theory. It is asked where the VM is that is opened to, after it is known that both are of one network (`rules`), and of every
packet: what is closed is cut, also where a connection is open; answers pass, to who was let in. A VM without rules is left
alone by the first look-up.

Who sends is known by its address, as a number for its identity: of VMs here the rules know it by themselves, of VMs of other
nodes (by IPv6 alone) as far as they were told; who is not known has no number, and gets in as anybody of the network does.
Then number and destination together say which list of openings counts, and one look-up in a set of ranges whether protocol
and port are on it. VMs with the same openings share the list. So a VM more is a few elements of sets without ranges, which
the kernel changes in no time; the chains are the same for any.

Traps: a look-up that finds nothing ends its rule and leaves the mark as it is, so numbers of lists and of identities are
never the same, and 0 is neither; ICMP is another protocol in IPv6 (58); as in `rules_policy`, an element of a set of ranges
is always written as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Network
from typing import NamedTuple

from plasmavmc.host.egress import Box, boxes
from plasmavmc.host.helper.nft import NamedSet
from plasmavmc.policy import ANYBODY, LAST_PORT, Destination, Ingress, IpProtocol, Opening

_REMEMBERED = 4096
"""Rules of a host that are looked at again with each change."""
_FIRST_LIST = 1 << 24
"""Lists are numbered from here on, and identities up to here."""
_ANYBODYS = 0
_ICMPV6 = 58
_ANYWHERE = IPv4Network("0.0.0.0/0")

Opened = tuple[str, ...]
"""A list of openings as elements, without its number: equal where it means the same."""


class Place(NamedTuple):
    """The addresses of a VM, by IPv4 and IPv6. Empty: it has none, or is on another node, where nobody knows it by IPv4."""

    four: str
    six: str

    @property
    def families(self) -> Iterator[tuple[str, str]]:
        """Suffixes of sets, with what is looked up there."""
        return ((suffix, address) for suffix, address in (("", self.four), ("6", self.six)) if address)


def named_in(ingress: Ingress) -> Iterator[str]:
    """Identities that rules name, each once."""
    return (identity for identity, _ in _lists(ingress) if identity != ANYBODY)


def lists_in(ingress: Ingress) -> Iterator[Opened]:
    """The lists that rules have, for whomever."""
    return (opened for _, opened in _lists(ingress))


def own_elements(
    place: Place, ingress: Ingress, identities: Mapping[str, int], lists: Mapping[Opened, int]
) -> Iterator[tuple[str, str]]:
    """What a VM with such rules is in sets, where identities and lists have these numbers from 1 on."""
    if ingress is None:
        return
    for suffix, address in place.families:
        yield f"ingress_held{suffix}", address
        for identity, opened in _lists(ingress):
            number = _ANYBODYS if identity == ANYBODY else identities[identity]
            yield f"ingress_from{suffix}", f"{number} . {address} : {_FIRST_LIST + lists[opened]}"


def identity_elements(place: Place, number: int) -> Iterator[tuple[str, str]]:
    """Those of one that is known by an identity which some rule names."""
    return ((f"identities{suffix}", f"{address} : {number}") for suffix, address in place.families)


def list_elements(opened: Opened, number: int) -> Iterator[tuple[str, str]]:
    """Those of a list."""
    return (("ingress_open", f"{_FIRST_LIST + number} . {each}") for each in opened)


def group_sets(said: Mapping[str, tuple[str, ...]]) -> dict[str, NamedSet]:
    """Sets and maps of ingress, with these elements."""
    opened = "mark . inet_proto . inet_service"
    return {
        **_family_sets("", "ipv4_addr", said),
        **_family_sets("6", "ipv6_addr", said),
        "ingress_open": NamedSet("set", opened, said.get("ingress_open", ()), ranges=True),
    }


def group_chains() -> dict[str, tuple[str, ...]]:
    """For what passes between two of one network."""
    return {"ingress": _chain("ip", ""), "ingress6": _chain("ip6", "6")}


def _chain(family: str, suffix: str) -> tuple[str, ...]:
    look_up = (
        f"meta mark set meta mark . {family} daddr map @ingress_from{suffix}",
        "meta mark . meta l4proto . th dport @ingress_open meta mark set 0 accept",
    )
    return (
        f"{family} daddr != @ingress_held{suffix} accept",
        "ct direction reply ct state established,related accept",
        f"meta mark set {_ANYBODYS}",
        *look_up,
        f"meta mark set {_ANYBODYS}",
        f"meta mark set {family} saddr map @identities{suffix}",
        *look_up,
        "drop",
    )


def _family_sets(suffix: str, address: str, said: Mapping[str, tuple[str, ...]]) -> dict[str, NamedSet]:
    shapes = {
        f"identities{suffix}": ("map", f"{address} : mark"),
        f"ingress_held{suffix}": ("set", address),
        f"ingress_from{suffix}": ("map", f"mark . {address} : mark"),
    }
    return {name: NamedSet(kind, type_, said.get(name, ())) for name, (kind, type_) in shapes.items()}


@lru_cache(_REMEMBERED)
def _lists(ingress: Ingress) -> tuple[tuple[str, Opened], ...]:
    """What each identity may open, by identity."""
    found: dict[str, list[Opening]] = {}
    for each in ingress or ():
        found.setdefault(each.identity, []).append(each)
    return tuple((identity, _opened(found[identity])) for identity in sorted(found))


def _opened(openings: Sequence[Opening]) -> Opened:
    protocols = {each.protocol for each in openings}
    alone = IpProtocol.ICMP in protocols and IpProtocol.ANY not in protocols  # that has all numbers in it
    icmpv6 = [f"{_ICMPV6} . 0-{LAST_PORT}"] if alone else []
    everywhere = [Destination(_ANYWHERE, each.protocol, each.first_port, each.last_port) for each in openings]
    return (*map(_text, boxes(everywhere)), *icmpv6)


def _text(box: Box) -> str:
    first, last = box.protocols
    protocols = str(first) if first == last else f"{first}-{last}"
    return f"{protocols} . {box.ports[0]}-{box.ports[1]}"
