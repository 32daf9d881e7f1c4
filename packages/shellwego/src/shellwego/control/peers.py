"""Which other nodes a node is told of, and the keys by which they know each other."""

from __future__ import annotations

from dataclasses import dataclass

from shellwego.control.marks import mark, set_mark
from shellwego.control.networks import private_prefix
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError
from shellwego.core.nodes import Underlay
from shellwego.core.peers import NO_ROTATIONS, PeerNode, Rotations, key_step, peers_by_node, peers_of
from shellwego.ports.clock import Clock
from shellwego.ports.store import Transaction

KNOWN_S = 1.0
_ROTATIONS, _ROTATED_AT = "peers.key-rotations", "peers.keys-rotated-at"


class PeerBook:
    """Who can be reached from where; read once a while and not by each node that asks, since it is all nodes that are
    read."""

    def __init__(self, clock: Clock, generation_s: float) -> None:
        """`generation_s`: so long keys of nodes are in use."""
        self._clock = clock
        self._generation_s = generation_s
        self._book: dict[str, PeerNode] = {}
        self._until = float("-inf")

    def key_step(self, tx: Transaction) -> int:
        """How far the exchange of keys between nodes is."""
        return key_step(tx.now(), self._generation_s, rotations(tx))

    def of(self, tx: Transaction, node_id: str) -> tuple[PeerNode, ...]:
        """Those that are not the node itself; none for one that nobody reaches either."""
        if self._clock.monotonic() >= self._until:
            self._book = peers_by_node(tx.nodes.select(), private_prefix(tx))
            self._until = self._clock.monotonic() + KNOWN_S
        return peers_of(node_id, self._book)


@dataclass(frozen=True, slots=True)
class Rotation:
    """An exchange of keys that somebody asked for."""

    began_at: float
    over_at: float
    nodes: int
    """Those that have such keys."""


def rotations(tx: Transaction) -> Rotations:
    """Those that were asked for so far."""
    count = mark(tx, _ROTATIONS)
    return Rotations(count, mark(tx, _ROTATED_AT)) if count else NO_ROTATIONS


def rotate_keys(unit: Unit) -> Rotation:
    """Have all nodes that are reached by WireGuard replace both of their keys, soon and without losing a packet. While that
    goes on, to ask for it again changes nothing.

    Raises:
        ConflictError: no node has such keys.
    """
    nodes = sum(node.facts.underlay is Underlay.WIREGUARD for node in unit.tx.nodes.select())
    if not nodes:
        raise ConflictError(
            "nothing-encrypted",
            "no node is reached by WireGuard, so none has keys to replace",
            resolution="Start the nodes with --underlay wireguard.",
        )
    known = rotations(unit.tx)
    if unit.now() >= known.over_at:
        set_mark(unit.tx, _ROTATIONS, known.count + 1)
        set_mark(unit.tx, _ROTATED_AT, int(unit.now()))
        unit.emit("platform.node_keys.rotated", "nodes", data={"nodes": str(nodes)})
        known = rotations(unit.tx)
    return Rotation(known.last_at, known.over_at, nodes)
