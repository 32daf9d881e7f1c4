"""Port: who may listen to which hints.

Agents and edges that run apart listen with an NKey of their own (`core.nkeys`), made where they run; its seed never leaves
that host. The control plane signs a pass for its public half. A pass lets its holder hear the subjects of its own node, or
the routes if it is an edge, and say nothing; so who steals one, with its seed, learns when one node should look again, and
no more. Servers have the authority itself, and need no pass.

Passes live short and are asked for again over the uplink (`renew_in_s`). One that must end sooner is revoked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

PASS_S = 24 * 3600.0
"""What a pass lives, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusPass:
    """All that a listener needs to know, beside its own seed."""

    token: str = field(repr=False)
    """Signed by the platform, for one public key; a user JWT of NATS."""
    urls: tuple[str, ...]
    """Where the bus's servers are; empty: there are none apart, and hints come over the uplink alone."""
    certificate: str = ""
    """PEM of what these servers are known by; empty: by the host's public authorities."""
    expires_at: float
    """Seconds since the epoch, by the control plane's clock."""
    lifetime_s: float

    @property
    def renew_in_s(self) -> float:
        """Ask for a new one so many seconds after this one was got: when a third of its life is left."""
        return self.lifetime_s * 2 / 3


class BusAccess(Protocol):
    def admit(self, listener_id: str, public_key: str, lifetime_s: float = PASS_S) -> BusPass:
        """Sign a pass for the holder of a key: a node (`node_…`) or an edge (`edg_…`). Asks nobody, and stores nothing.

        Raises:
            InvalidError: the key is no user's NKey (`invalid-nkey`), or no listener has such an id (`invalid-listener`).
        """

    async def revoke(self, keys: Mapping[str, float]) -> None:
        """Make the passes of these public keys worthless that were signed up to the given times (seconds since the epoch).
        Connections that are open with one are cut within a second.

        Give all keys that were revoked within the longest life of a pass each time: those that are in force already
        stay, so to repeat it does no harm, and repairs what a bus forgot. One server does this at a time (under a lease).

        Raises:
            UnavailableError: the bus does not answer; it may be in force or not.
        """

    async def close(self) -> None: ...
