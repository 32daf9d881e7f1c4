"""Placement for one loop: a fleet that is kept in memory, and a check of every choice against the store.

All nodes, and what is on them, are read in full only from time to time, so seldom that the reading takes no more than a
twentieth of the time. What is kept in between may be out of date, since other servers place instances, too, and nodes
report; it only guides the search to a good node. Whatever is chosen is checked in the transaction that places it,
against the node as it is and the sum of what is on it. So two servers that choose the same room conflict in the store,
and the later one sees what the earlier one took.

Room that is freed meanwhile is found a little later. A refusal is looked at again as soon as the fleet may be read
again.
"""

from __future__ import annotations

from collections.abc import Mapping

from shellwego.control.facts import node_usage
from shellwego.core.fleet import Fleet, Peers
from shellwego.core.placement import NOTHING, Placement, PlacementRequest, Refusal
from shellwego.ports.clock import Clock
from shellwego.ports.store import Transaction

READING_SHARE = 20
"""The fleet is read again when so many times as long has passed as reading it took."""
CURRENT_S = 1.0
"""So long after it was read, a refusal is believed enough to evict for it."""


class Placer:
    """Chooses nodes within transactions, one at a time; each begins with `read` or `begin`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._fleet = Fleet()
        self._due = float("-inf")
        self._read_at = float("-inf")
        self._seen: set[str] = set()
        """Nodes that are known as this transaction sees them, with what it placed there itself."""

    def read(self, tx: Transaction) -> None:
        """Begin a transaction, with all nodes read anew if that is due."""
        now = self._clock.monotonic()
        if now < self._due:
            self.begin(tx)
            return
        self._fleet = Fleet(tx.nodes.select(), node_usage(tx))
        self._seen.clear()
        self._read_at = self._clock.monotonic()
        self._due = now + READING_SHARE * (self._read_at - now)

    def begin(self, tx: Transaction) -> None:
        """Begin a transaction. What the last one placed may have been stored, or undone."""
        seen, self._seen = self._seen, set()
        for node_id in seen:
            self.see(tx, node_id)
        self._seen.clear()

    def due_in_s(self) -> float:
        """How long the fleet is not read anew; at most zero: it may be."""
        return self._due - self._clock.monotonic()

    def current(self) -> bool:
        """Whether the fleet was read just now, so that what has no room in it has none indeed."""
        return self._clock.monotonic() - self._read_at <= CURRENT_S

    def peers(self, counts: Mapping[str, int]) -> Peers:
        """See `Fleet.peers`."""
        return self._fleet.peers(counts)

    def place(self, tx: Transaction, request: PlacementRequest, peers: Peers) -> Placement | Refusal:
        """The node for an instance, which has room for it in this transaction; it is taken, in `peers` too."""
        while True:
            outcome = self._fleet.place(request, peers)
            if isinstance(outcome, Refusal):
                return outcome
            if self._has_room(tx, outcome.node_id, request):
                self._fleet.take(outcome.node_id, request, peers)
                return outcome

    def _has_room(self, tx: Transaction, node_id: str, request: PlacementRequest) -> bool:
        """Whether the store agrees; where it does not, the fleet knows better now and chooses another."""
        if node_id not in self._seen:
            self.see(tx, node_id)
        return self._fleet.fits(node_id, request)

    def see(self, tx: Transaction, node_id: str) -> None:
        """Know a node as it is in this transaction."""
        node = tx.nodes.get(node_id)
        if node is None:
            self._fleet.remove(node_id)
        else:
            self._fleet.put(node, node_usage(tx, node_id).get(node_id, NOTHING))
            self._seen.add(node_id)
