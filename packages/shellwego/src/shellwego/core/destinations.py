"""What an app may open connections to outside of its private network. Pure.

Theory. It is policy and not config: in no release, so that a rollback never opens what was closed, and it acts on what runs.
An app that is held to its list may open connections to what is on it only; one that is not keeps its list for when it is.
What is closed to every VM (its host, other installations, metadata, multicast) stays closed, so a list that names nothing
else is refused rather than accepted without effect. VMs have no public IPv6 address, and names change what they mean, so
destinations are networks of IPv4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, ip_network

from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.subnets import POOL

MAX_DESTINATIONS = 32
"""Of one app."""
LAST_PORT = 65535
_CLOSED = tuple(
    (IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "no address of another host"),
        (str(POOL), "of the platform's own nodes and VMs"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local, with a cloud's metadata"),
        ("224.0.0.0/3", "multicast or reserved"),
    )
)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


class IpProtocol(StrEnum):
    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A network, and of it what a protocol and a range of ports leave."""

    network: str
    """In its one spelling, such as `203.0.113.0/24`."""
    protocol: IpProtocol = IpProtocol.ANY
    first_port: int = 0
    """Of TCP and UDP; others have none to choose among."""
    last_port: int = LAST_PORT

    @property
    def ports(self) -> str:
        """`443` or `8000-8100`; empty: all."""
        return ports_text(self.first_port, self.last_port)

    def __str__(self) -> str:
        """As people write it: `203.0.113.0/24:443/tcp`."""
        protocol = "" if self.protocol is IpProtocol.ANY else f"/{self.protocol.value}"
        return self.network + (f":{self.ports}" if self.ports else "") + protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What an app may open connections to."""

    listed: bool = False
    """To what is on its list only; else to whatever is not closed to every VM."""
    destinations: tuple[Destination, ...] = ()

    @property
    def held_to(self) -> tuple[Destination, ...] | None:
        """What it is held to; None: it is not."""
        return self.destinations if self.listed else None


EVERYWHERE = Egress()


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationWish:
    """A destination as it was written."""

    network: str
    protocol: IpProtocol = IpProtocol.ANY
    ports: str = ""


def parse_destinations(field: str, wishes: Sequence[DestinationWish]) -> tuple[Destination, ...]:
    """Destinations in their one spelling.

    Raises:
        InvalidError: with every fault, each by its place below `field`.
    """
    found: list[Destination] = []
    faults: list[FieldError] = []
    for index, wish in enumerate(wishes):
        try:
            found.append(_parsed(wish))
        except WishFaultError as fault:
            faults.append(FieldError(f"{field}.{index}.{fault.field}", fault.code, str(fault)))
    _refuse(faults)
    return tuple(found)


def changed(
    egress: Egress,
    *,
    listed: bool | None = None,
    allow: Iterable[Destination] = (),
    deny: Sequence[Destination] = (),
) -> Egress:
    """The egress after a change. What is allowed twice is on the list once.

    Raises:
        InvalidError: what is to go is not on the list, or the list becomes too long.
    """
    known = frozenset(egress.destinations)
    _refuse(
        [
            FieldError(f"deny.{index}", "not-listed", f"{each} is not on the list")
            for index, each in enumerate(deny)
            if each not in known
        ]
    )
    destinations = tuple(each for each in dict.fromkeys((*egress.destinations, *allow)) if each not in deny)
    if len(destinations) > MAX_DESTINATIONS:
        _refuse([FieldError("allow", "too-many", f"a list has {MAX_DESTINATIONS} destinations at most")])
    return Egress(listed=egress.listed if listed is None else listed, destinations=destinations)


class WishFaultError(Exception):
    """What is wrong with one field of a wish. The message is for who wrote it."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


def ports_text(first: int, last: int) -> str:
    """`443` or `8000-8100`; empty: all."""
    if (first, last) == (0, LAST_PORT):
        return ""
    return str(first) if first == last else f"{first}-{last}"


def _parsed(wish: DestinationWish) -> Destination:
    first, last = parse_ports(wish.protocol, wish.ports)
    return Destination(network=_network(wish.network), protocol=wish.protocol, first_port=first, last_port=last)


def _network(text: str) -> str:
    try:
        network = ip_network(text)
    except ValueError:
        raise WishFaultError(
            "network", "bad-network", "an IPv4 network, such as 203.0.113.0/24, whose host bits are 0"
        ) from None
    if not isinstance(network, IPv4Network):
        raise WishFaultError("network", "no-ipv6", "VMs have no public IPv6 address; give a network of IPv4")
    for closed, why in _CLOSED:
        if network.subnet_of(closed):
            raise WishFaultError("network", "closed-to-all", f"no VM may open connections to {network}: it is {why}")
    return str(network)


def parse_ports(protocol: IpProtocol, text: str) -> tuple[int, int]:
    """The first and the last of a range of ports, of which an empty text means all; raises `WishFaultError`."""
    if not text:
        return 0, LAST_PORT
    if protocol not in (IpProtocol.TCP, IpProtocol.UDP):
        raise WishFaultError("ports", "no-ports", "ports are of tcp or udp; name one of them as the protocol")
    match = _PORTS.fullmatch(text)
    if match is None:
        raise WishFaultError("ports", "bad-ports", "a port or a range of them, such as 443 or 8000-8100")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= LAST_PORT:
        raise WishFaultError(
            "ports", "out-of-range", f"ports are 1 to {LAST_PORT}, the first of a range not above its last"
        )
    return first, last


def _refuse(faults: Sequence[FieldError]) -> None:
    if faults:
        raise InvalidError("egress-refused", f"{faults[0].field}: {faults[0].message}", errors=tuple(faults))
