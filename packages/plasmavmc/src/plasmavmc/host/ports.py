"""Ports of this host's own addresses at which VMs answer, as values.

Two views of the same. What is *published* names VMs, wherever they are. What is *open* names the addresses that this host
sends to, after it was seen which of those VMs it has (`network.publishing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address


class Transport(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class Answerer:
    """A VM that answers at a published port."""

    key: str
    ipv4: IPv4Address
    port: int
    """Its own."""
    taking: bool = True
    """It gets new connections; else it keeps those that it has."""


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of every node's addresses, and the VMs of the platform that answer at it."""

    transport: Transport
    number: int
    answerers: tuple[Answerer, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class PortName:
    """Which port it is, whoever answers at it."""

    transport: Transport
    number: int


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a VM answers."""

    ipv4: IPv4Address
    port: int
    ipv6: IPv6Address | None = None
    """Of a VM of this host that has one."""


@dataclass(frozen=True, slots=True)
class OpenPort:
    """A port of this host's addresses, and where what comes in there goes."""

    transport: Transport
    number: int
    taking: tuple[Spot, ...] = ()
    """In turn by chance; where there is none, nobody answers."""
    ending: tuple[Spot, ...] = ()
    """Nothing new goes there; what is open stays."""

    @property
    def spots(self) -> tuple[Spot, ...]:
        return (*self.taking, *self.ending)


@dataclass(frozen=True, slots=True)
class PublishSite:
    """What root allows of this at the helper's start."""

    ports: range = range(0)
    """Those that may be published on this host; none: nothing is."""
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    """Of this host, at which they answer; none: all but loopback, link-local and those of installations."""

    @property
    def allowed(self) -> bool:
        return bool(self.ports)


NOTHING_PUBLISHED = PublishSite()


def within(networks: Iterable[IPv4Network]) -> Callable[[IPv4Address], bool]:
    """Whether an address is in one of these; as quick for a thousand of them as for one."""
    heads: dict[int, set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        heads.setdefault(shift, set()).add(int(network.network_address) >> shift)
    return lambda address: any(int(address) >> shift in known for shift, known in heads.items())
