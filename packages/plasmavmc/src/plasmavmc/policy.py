"""What may pass between a VM and others: destinations that it may open connections to, and what may be opened to it.

Both are lists of what is allowed; None in a list's place means that nothing is forbidden but what is closed to every VM. A
rule that makes no sense says so by its `fault`, and whoever takes rules from outside asks for it: nothing here raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network

LAST_PORT = 65535
MAX_DESTINATIONS = 32
"""Of one VM."""
MAX_OPENINGS = 64
"""Of one VM."""
ANYBODY = ""
"""In a rule of ingress: whoever is of the VM's network."""

_IDENTITY = re.compile(r"[a-z0-9_-]{1,64}")


class IpProtocol(StrEnum):
    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


@dataclass(frozen=True, slots=True)
class Destination:
    """What a VM may open connections to."""

    network: IPv4Network
    protocol: IpProtocol = IpProtocol.ANY
    first_port: int = 0
    """Of TCP or UDP; others have none to choose among."""
    last_port: int = LAST_PORT

    @property
    def fault(self) -> tuple[str, str] | None:
        """The field that makes no sense, and why."""
        return _port_fault(self.protocol, self.first_port, self.last_port)

    def __str__(self) -> str:
        """As people write it: `203.0.113.0/24:443/tcp`."""
        return f"{self.network}{_ports_text(self.protocol, self.first_port, self.last_port)}"


def _port_fault(protocol: IpProtocol, first: int, last: int) -> tuple[str, str] | None:
    if not 0 <= first <= LAST_PORT:
        return "first_port", f"a port is a number from 0 to {LAST_PORT}"
    if not max(1, first) <= last <= LAST_PORT:
        return "last_port", f"a range of ports ends at its beginning or above, and at {LAST_PORT} at the most"
    if protocol not in (IpProtocol.TCP, IpProtocol.UDP) and (first, last) != (0, LAST_PORT):
        return "first_port", f"{protocol.value} has no ports to choose among"
    return None


def _ports_text(protocol: IpProtocol, first: int, last: int) -> str:
    every = (first, last) == (0, LAST_PORT)
    ports = "" if every else f":{first}" if first == last else f":{first}-{last}"
    return ports + ("" if protocol is IpProtocol.ANY else f"/{protocol.value}")


Egress = tuple[Destination, ...] | None
"""All that a VM may open connections to outside of its network; None: whatever is not closed to every VM."""


def is_identity(text: str) -> bool:
    """Whether VMs can be told apart by it: 1 to 64 characters of a-z, 0-9, - and _."""
    return _IDENTITY.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Opening:
    """What VMs of a network may open to one of them."""

    identity: str = ANYBODY
    """Whose: those that have it (`NetworkSpec.identity`); or `ANYBODY`'s."""
    protocol: IpProtocol = IpProtocol.ANY
    first_port: int = 0
    """Of TCP or UDP; others have none to choose among."""
    last_port: int = LAST_PORT

    @property
    def fault(self) -> tuple[str, str] | None:
        """The field that makes no sense, and why."""
        if self.identity != ANYBODY and not is_identity(self.identity):
            return "identity", "1 to 64 characters of a-z, 0-9, - and _ are needed"
        return _port_fault(self.protocol, self.first_port, self.last_port)

    def __str__(self) -> str:
        """As people write it: `web:5432/tcp`, and `*` for anybody."""
        return f"{self.identity or '*'}{_ports_text(self.protocol, self.first_port, self.last_port)}"


Ingress = tuple[Opening, ...] | None
"""All that VMs of its network may open to a VM; None: anything."""
