"""Keys by which nodes and edges listen on the bus. Each has a pass that the control plane signed for it (`ports.busaccess`).

A key is made where it is used and kept in memory alone; when its pass is to be renewed, another key takes its place. So
nothing is to be done about one that was replaced, and what is stored is only whom to shut out when the owner must go.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_HELD = 8
"""Keys of one node or edge with a pass that has not ended: it took one at each of its last starts."""
MOST_NOTED = 2 * MOST_HELD
"""With those that were revoked before their pass ended. The bus holds all these in one message of 64 KiB, for all nodes
together, so one that starts again and again, or says so, goes without for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusKey:
    """A public key with a pass."""

    id: str
    public_key: str
    """As NATS writes it (`core.nkeys`)."""
    member_id: str
    """The node or edge that may listen with it."""
    created_at: float
    expires_at: float
    """The end of its last pass, by the store's clock."""
    revoked_at: float = 0.0
    """What was signed for it up to then is void; 0: nothing is."""
    version: int = 1


def statement(member_id: str) -> bytes:
    """What the holder of a key signs with it when it asks for a pass, so that none gets one for another's key."""
    return f"shellwego bus {member_id}".encode()
