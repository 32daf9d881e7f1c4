"""Which instances would better run elsewhere, as when a node joined empty. Pure.

Theory. What counts is the share of its memory that a node has promised, because memory is what a node runs out of. The
fullest node gives one instance to wherever placement would put it, as often as that makes the fullest emptier by a clear
gap; so it ends, and nothing is moved for little. An instance is not moved to where more of its kind are than where it is,
so a spread is never made worse, and placement, asked again when it really moves, finds the other node better, too.

What sleeps, is not healthy, or is of an app under deployment is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shellwego.core.fleet import Fleet
from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase, Sleep
from shellwego.core.nodes import Node, NodeHealth, Scheduling
from shellwego.core.placement import NodeUsage, PlacementRequest, Refusal

GAP = 0.1
"""By so much of its memory the fuller node must be fuller before a move than the other one is after it."""
MOST_MOVES = 200
"""In one plan."""

Kind = tuple[str, str]
"""Of an instance: its app and process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """An instance that would better run on another node, and why."""

    instance: Instance
    from_node: str
    to_node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RebalanceFacts:
    nodes: tuple[Node, ...]
    usage: Mapping[str, NodeUsage]
    instances: tuple[Instance, ...] = ()
    """Those that may be moved."""
    requests: Mapping[str, PlacementRequest] = field(default_factory=dict)
    """By instance."""
    peers: Mapping[Kind, Mapping[str, int]] = field(default_factory=dict)
    """How many of a kind are on each node, those that may not be moved too."""


def kind_of(instance: Instance) -> Kind:
    """What a spread is about."""
    return instance.app_id, instance.process


def may_move(instance: Instance) -> bool:
    """Whether it could be replaced elsewhere without anybody noticing."""
    return (
        instance.owner is OwnerKind.APP
        and instance.phase is Phase.HEALTHY
        and instance.desired is Desired.SERVE
        and instance.sleep is Sleep.AWAKE
        and instance.eviction is Eviction.NONE
    )


def plan_rebalance(facts: RebalanceFacts) -> tuple[Move, ...]:
    """Moves in the order in which they are to be made; none where nothing would be much better."""
    board = _Board(facts)
    moves: list[Move] = []
    sources = set(board.nodes)
    while sources and len(moves) < MOST_MOVES:
        source = max(sources, key=lambda id_: (board.share(id_), id_))
        move = board.best_move(source)
        if move is None:
            sources.discard(source)
        else:
            board.make(move)
            moves.append(move)
            sources = set(board.nodes)
    return tuple(moves)


class _Board:
    """The nodes as they would be after the moves that were made so far."""

    def __init__(self, facts: RebalanceFacts) -> None:
        self._fleet = Fleet(facts.nodes, facts.usage)
        usable = [
            node for node in facts.nodes if node.health is NodeHealth.READY and node.scheduling is Scheduling.OPEN
        ]
        self.nodes = {node.id: node for node in [n for n in usable if n.dependable] or usable}
        self._requests = facts.requests
        self._peers = {kind: dict(counts) for kind, counts in facts.peers.items()}
        self._here: dict[str, list[Instance]] = {id_: [] for id_ in self.nodes}
        for instance in sorted(facts.instances, key=lambda i: (-i.memory_bytes, i.id)):
            if instance.node_id in self._here:
                self._here[instance.node_id].append(instance)

    def share(self, node_id: str, more_bytes: int = 0) -> float:
        """Of its memory that a node has promised."""
        return (self._used(node_id).memory_bytes + more_bytes) / max(self.nodes[node_id].facts.memory_bytes, 1)

    def best_move(self, source: str) -> Move | None:
        emptiest = min((self.share(id_) for id_ in self.nodes if id_ != source), default=None)
        if emptiest is None or self.share(source) < emptiest + GAP:
            return None
        for instance in self._here[source]:
            target = self._target(instance, source)
            if target is not None:
                return Move(
                    instance=instance,
                    from_node=source,
                    to_node=target,
                    reason=f"{self._told(source)}, {self._told(target)}",
                )
        return None

    def make(self, move: Move) -> None:
        request, counts = self._requests[move.instance.id], self._peers[kind_of(move.instance)]
        self._take_off(move.from_node, request)
        self._fleet.take(move.to_node, request)
        counts[move.from_node] -= 1
        counts[move.to_node] = counts.get(move.to_node, 0) + 1
        self._here[move.from_node] = [i for i in self._here[move.from_node] if i.id != move.instance.id]

    def _target(self, instance: Instance, source: str) -> str | None:
        """Where placement would put it were it gone, if that is much better and no worse a spread."""
        request, counts = self._requests[instance.id], self._peers[kind_of(instance)]
        others = {node_id: count - (node_id == source) for node_id, count in counts.items()}
        used = self._used(source)
        self._take_off(source, request)
        found = self._fleet.place(request, self._fleet.peers({id_: n for id_, n in others.items() if n}))
        self._fleet.put(self.nodes[source], used)
        if isinstance(found, Refusal) or found.node_id not in self.nodes or found.node_id == source:
            return None
        fewer = counts.get(found.node_id, 0) < counts[source]
        after = self.share(found.node_id, request.memory_bytes)
        return found.node_id if fewer and after + GAP <= self.share(source) else None

    def _take_off(self, node_id: str, request: PlacementRequest) -> None:
        self._fleet.put(self.nodes[node_id], self._used(node_id).minus(request))

    def _used(self, node_id: str) -> NodeUsage:
        return self._fleet.used(node_id)

    def _told(self, node_id: str) -> str:
        return f"{self.nodes[node_id].name} has promised {self.share(node_id):.0%} of its memory"
