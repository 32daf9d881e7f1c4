"""Which nodes are told of which others."""

from __future__ import annotations

from shellwego.core.peers import PeerNode, peers_by_node
from shellwego.ports.clock import Clock
from shellwego.ports.store import Transaction

KNOWN_S = 1.0


class PeerBook:
    """Who can be reached from where; read once a while and not by each node that asks, since it is all nodes that are
    read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._book: dict[str, PeerNode] = {}
        self._until = float("-inf")

    def of(self, tx: Transaction, node_id: str) -> tuple[PeerNode, ...]:
        """Those that are not the node itself; none for one that nobody reaches either."""
        if self._clock.monotonic() >= self._until:
            self._book = peers_by_node(tx.nodes.select())
            self._until = self._clock.monotonic() + KNOWN_S
        book = self._book
        return tuple(peer for id_, peer in book.items() if id_ != node_id) if node_id in book else ()
