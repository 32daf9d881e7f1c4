"""Which instances would better run elsewhere, as when a node joined empty. Pure.

Theory. What counts is the share of its memory that a node has promised, because memory is what a node runs out of. The
fullest node gives one instance to wherever placement would put it, as often as that makes the fullest emptier by a clear
gap; so it ends, and nothing is moved for little. An instance is not moved to where more of its kind are than where it is,
so a spread is never made worse, and placement, asked again when it really moves, finds the other node better, too.

What sleeps, is not healthy, or is of an app under deployment is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase, Sleep
from shellwego.core.nodes import Node, NodeHealth, Scheduling, shunned
from shellwego.core.placement import NodeUsage, PlacementRequest, Refusal, place

GAP = 0.1
"""By so much of its memory the fuller node must be fuller before a move than the other one is after it."""
MOST_MOVES = 200
"""In one plan."""
_TARGETS = 50
"""So many of the emptiest nodes are looked at."""


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
    return tuple(moves)


class _Board:
    """The nodes as they would be after the moves that were made so far."""

    def __init__(self, facts: RebalanceFacts) -> None:
        avoided = shunned(facts.nodes)
        self.nodes = {node.id: node for node in facts.nodes if _is_usable(node) and node.id not in avoided}
        self._usage = dict(facts.usage)
        self._requests = facts.requests
        self._here: dict[str, list[Instance]] = {id_: [] for id_ in self.nodes}
        for instance in sorted(facts.instances, key=lambda i: (-i.memory_bytes, i.id)):
            if instance.node_id in self._here:
                self._here[instance.node_id].append(instance)

    def share(self, node_id: str, more_bytes: int = 0) -> float:
        """Of its memory that a node has promised."""
        return (self._used(node_id).memory_bytes + more_bytes) / max(self.nodes[node_id].facts.memory_bytes, 1)

    def best_move(self, source: str) -> Move | None:
        others = sorted((id_ for id_ in self.nodes if id_ != source), key=lambda id_: (self.share(id_), id_))[:_TARGETS]
        if not others or self.share(source) < self.share(others[0]) + GAP:
            return None
        for instance in self._here[source]:
            target = self._target(self._requests[instance.id], source, others)
            if target is not None:
                return Move(
                    instance=instance,
                    from_node=source,
                    to_node=target,
                    reason=f"{self._told(source)}, {self._told(target)}",
                )
        return None

    def make(self, move: Move) -> None:
        request = self._requests[move.instance.id]
        self._usage[move.from_node] = self._used(move.from_node).minus(request)
        self._usage[move.to_node] = self._used(move.to_node).plus(request)
        self._here[move.from_node] = [i for i in self._here[move.from_node] if i.id != move.instance.id]

    def _target(self, request: PlacementRequest, source: str, others: Iterable[str]) -> str | None:
        """Where placement would put it, if that is much better and no worse a spread."""
        found = place(request, [self.nodes[id_] for id_ in others], self._usage)
        if isinstance(found, Refusal):
            return None
        kind = (request.app_id, request.process)
        there, here = self._used(found.node_id).per_process.get(kind, 0), self._used(source).per_process.get(kind, 0)
        after = self.share(found.node_id, request.memory_bytes)
        return found.node_id if there < here and after + GAP <= self.share(source) else None

    def _used(self, node_id: str) -> NodeUsage:
        return self._usage.get(node_id, NodeUsage())

    def _told(self, node_id: str) -> str:
        return f"{self.nodes[node_id].name} has promised {self.share(node_id):.0%} of its memory"


def _is_usable(node: Node) -> bool:
    return node.health is NodeHealth.READY and node.scheduling is Scheduling.OPEN
