"""What a host does at published ports. Pure.

Theory. Each node answers at each published port. It sends new connections to its own VMs, so that they see the client's
address; where it has none, to those of other nodes. A VM of this host is recognized by its key and not by the address
that the control plane told, which may be old, and belong to another tenant's VM by now. So a VM that ended gets nothing
from that moment on, whether or not anybody was told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from plasmavmc.host.operations import Member, Peer
from plasmavmc.host.ports import Answerer, OpenPort, PortName, PublishedPort, Spot, Transport, within

MAX_SPOTS = 60
"""VMs of one port that a host sends to: its slots are as many, which 2, 3, 4, 5 and 6 divide evenly."""
EVERY = range(1 << 16)

_Known = tuple[Spot, bool]
"""Where a VM answers, and whether it gets new connections."""


def open_ports(
    published: Iterable[PublishedPort],
    members: Mapping[str, Member],
    peers: Sequence[Peer],
    retired: Collection[str] = (),
) -> tuple[OpenPort, ...]:
    """The ports that this host, which has these VMs by key, is to open; in a stable order. Those of which nobody is left are
    not among them. `retired`: VMs of this host that are about to stop."""
    is_peers = within(peer.network for peer in peers)
    found = []
    for port in published:
        here = _here(port.answerers, members, retired)
        away = [(Spot(each.ipv4, each.port), each.taking) for each in port.answerers if is_peers(each.ipv4)]
        taking = _spots(here, taking=True) or _spots(away, taking=True)
        ending = _spots([*here, *away], taking=False)
        found.append(OpenPort(port.transport, port.number, taking, ending))
    return tuple(sorted((port for port in found if port.spots), key=lambda port: (port.transport, port.number)))


class Publishing:
    """What is published, and open of it here; worked out anew only where somebody that answers came or went."""

    def __init__(self, web_port: int = 0) -> None:
        self._web = (PortName(Transport.TCP, web_port),) if web_port else ()
        self._told: tuple[PublishedPort, ...] = ()
        self._published: tuple[PublishedPort, ...] = ()
        self._keys: tuple[str, ...] = ()
        self._retired: frozenset[str] = frozenset()
        self._basis: object = None
        self._open: tuple[OpenPort, ...] = ()
        self.answered: tuple[PortName, ...] = self._web
        """Those at which somebody of the platform answers, whether or not this host does; its edges at `web_port`."""

    def publish(self, ports: Iterable[PublishedPort], offered: range = EVERY) -> bool:
        """These, and no others; this host answers at those of them that it offers. Whether they are new."""
        told = tuple(ports)
        if told == self._told:
            return False
        self._told = told
        self._published = tuple(port for port in told if port.number in offered)
        self._keys = tuple({each.key for port in self._published for each in port.answerers})
        self.answered = tuple(
            sorted({*self._web, *(PortName(port.transport, port.number) for port in told if port.answerers)})
        )
        return True

    def retire(self, key: str) -> bool:
        """Give VM `key` nothing new. Whether that changes anything."""
        before, self._retired = self._retired, self._retired | {key}
        return key not in before and key in self._keys

    def forget(self, key: str) -> None:
        """It is gone; another may have its key later."""
        self._retired -= {key}

    def open(self, members: Mapping[str, Member], peers: Sequence[Peer]) -> tuple[OpenPort, ...]:
        """As `open_ports`."""
        basis = self._published, [members.get(key) for key in self._keys], peers, self._retired
        if basis != self._basis:
            self._basis, self._open = basis, open_ports(self._published, members, peers, self._retired)
        return self._open


def _here(answerers: Iterable[Answerer], members: Mapping[str, Member], retired: Collection[str]) -> list[_Known]:
    return [
        (Spot(member.ipv4, each.port, member.ipv6), each.taking and each.key not in retired)
        for each in answerers
        if (member := members.get(each.key)) is not None
    ]


def _spots(known: Iterable[_Known], *, taking: bool) -> tuple[Spot, ...]:
    found = {spot for spot, takes in known if takes is taking}
    return tuple(sorted(found, key=lambda spot: (spot.ipv4, spot.port))[:MAX_SPOTS])
