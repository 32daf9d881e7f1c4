"""What preemption means: all sets on all nodes, and the cheapest of them. `core.preemption` must choose as this does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from shellwego.core.nodes import Node
from shellwego.core.placement import PlacementRequest, Rank, objection, rank
from shellwego.core.preemption import GAP, MOST_EVICTED, Candidate, Victim, freed

Found = tuple[Node, tuple[Victim, ...]]


def preempt(
    request: PlacementRequest, priority: int, candidates: Sequence[Candidate], serving: Mapping[str, int]
) -> Found | None:
    """The fewest on one node, then the lowest in priority, then the least harm, then the best place; sets that take the last
    that serves of an app only where there is no other."""
    sets = [
        (candidate, chosen)
        for candidate in candidates
        for chosen in _sets(candidate, priority)
        if _fits(request, candidate, chosen)
    ]
    allowed = [each for each in sets if _leaves_one(each[1], serving)] or sets
    cheapest = min((_cost(priority, *each) for each in allowed), default=None)
    best = {each[0].node.id: each for each in reversed(allowed) if _cost(priority, *each) == cheapest}
    chosen = min(best.values(), key=lambda each: _place(request, *each), default=None)
    return None if chosen is None else (chosen[0].node, chosen[1])


def alone(victim: Victim, candidate: Candidate, priority: int) -> bool:
    """Whether the node has no other of its process that may go."""
    low = [v for v in candidate.victims if v.priority <= priority - GAP]
    return sum((v.app_id, v.process) == (victim.app_id, victim.process) for v in low) == 1


def _sets(candidate: Candidate, priority: int) -> list[tuple[Victim, ...]]:
    low = [v for v in candidate.victims if v.priority <= priority - GAP]
    low.sort(key=lambda v: (v.priority, alone(v, candidate, priority), v.memory_bytes, v.instance_id))
    return [chosen for size in range(1, MOST_EVICTED + 1) for chosen in combinations(low, size)]


def _fits(request: PlacementRequest, candidate: Candidate, chosen: Sequence[Victim]) -> bool:
    return objection(request, candidate.node, candidate.used.without(freed(chosen)), choice=False) is None


def _leaves_one(chosen: Sequence[Victim], serving: Mapping[str, int]) -> bool:
    apps = {victim.app_id for victim in chosen if victim.serves}
    return all(sum(v.serves and v.app_id == app_id for v in chosen) < serving.get(app_id, 0) for app_id in apps)


def _cost(priority: int, candidate: Candidate, chosen: tuple[Victim, ...]) -> tuple[int, ...]:
    harm = sum(alone(victim, candidate, priority) for victim in chosen)
    return len(chosen), sum(victim.priority for victim in chosen), harm


def _place(request: PlacementRequest, candidate: Candidate, chosen: tuple[Victim, ...]) -> Rank:
    return rank(request, candidate.node, candidate.used.without(freed(chosen)), candidate.beside, candidate.in_zone)
