"""What WireGuard is told and tells, whoever encrypts: a kernel or a program. Pure, but for keys that are drawn.

Keys are text in base64 (as wg(8) shows them). A private key is in no text that is printed.

Source: https://www.wireguard.com/papers/wireguard.pdf, wg(8).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_BYTES = 32
KEEPALIVE_S = 25
"""So often something is sent to whom nothing else is: it is known then that he is there, and that both keys fit."""


@dataclass(frozen=True, slots=True)
class End:
    """Another node, as one device knows it: by its key it proves to be the one that may send from these networks."""

    address: IPv4Address
    port: int
    networks: tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be different at a device."""

    private_key: str = field(default="", repr=False)
    """Empty: it stays."""
    port: int = 0
    """0: it stays."""
    gone: tuple[str, ...] = ()
    """Ends by their public keys. What they had agreed on is forgotten."""
    ends: Mapping[str, End] = field(default_factory=dict)
    """By public key: new ones, and those that are as this from now on."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a device says of itself."""

    private_key: str = field(default="", repr=False)
    """Empty: it has none."""
    port: int = 0
    handshakes: Mapping[str, float] = field(default_factory=dict)
    """By the other end's public key: the time of the last one, by this host's clock; 0: there was none."""


class Devices(Protocol):
    """Who encrypts. Devices are called by their names."""

    name: str
    """`kernel` or `wireguard-go`."""

    def ensure(self, device: str) -> bool:
        """Have a device, up, with what ran before. False where it is fresh, without key and ends.

        Raises:
            HostError: `no-wireguard`; the host refused.
        """

    def look(self, device: str) -> Sight:
        """What there is. Raises `HostError`."""

    def change(self, device: str, change: Change) -> None:
        """Raises `HostError`: `port-taken`, or what else was refused."""

    def remove(self, device: str) -> None:
        """Take it away; one that is not there is fine."""


def draw_key() -> str:
    """A private key that nobody had before."""
    return b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()


def public_key(private_key: str) -> str:
    """What others know of a private key."""
    own = X25519PrivateKey.from_private_bytes(b64decode(private_key))
    return b64encode(own.public_key().public_bytes_raw()).decode()


def is_key(text: str) -> bool:
    """Whether a text is a key in the one form that it is written in."""
    try:
        raw = b64decode(text, validate=True)
    except ValueError:
        return False
    return len(raw) == KEY_BYTES and b64encode(raw).decode() == text
