"""Which instances make room for one that matters more, where no node fits. Pure.

Theory. Who may evict whom follows from the priorities alone: only instances whose priority is lower by `GAP` at least ever
go. So the order is strict, nobody evicts who could be evicted by the same one in turn, and what was evicted can itself
evict only what is lower still: a chain of evictions ends.

All that goes for one instance goes from one node, since half of a place is none. The set is the fewest that make the room,
of those the lowest in priority, of those the least harm to the spread of what goes; then the node is the best one by the
rank that placement has. The last instance of an app that serves goes only where no other set makes the room.

The search looks at sets in the order of what they cost, and leaves out what cannot be better or cannot be enough. Fewest
with three resources is a hard problem in general, so it gives up after so many steps, and takes the best that it has seen,
or a larger set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from shellwego.core.instances import Instance
from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.placement import (
    NOTHING,
    NodeUsage,
    Placement,
    PlacementRequest,
    objection,
    rank,
    room_on,
    share_after,
)

GAP = 10
"""So much lower is the priority of what may be evicted."""
MOST_EVICTED = 8
"""For one instance."""
MOST_NODES = 16
"""Are looked at for one instance: those that lack least."""
MOST_STEPS = 5_000
"""Of the search, on one node, for sets of one size."""
_PRIORITY = 1000
"""What a priority weighs against the harm to a spread, which is less than this for any set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """An instance that may have to go."""

    instance_id: str
    app_id: str
    process: str
    priority: int
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    serves: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node with what may go from it. `beside` and `in_zone` are how many of the same process as the one that comes are
    there, and in its zone."""

    node: Node
    used: NodeUsage
    victims: tuple[Victim, ...]
    beside: int = 0
    in_zone: int = 0


@dataclass(frozen=True, slots=True)
class Preemption:
    """The node that an instance gets once these have left it."""

    node: Node
    victims: tuple[Victim, ...]

    @property
    def reason(self) -> str:
        """What the instance waits for."""
        return waits(self.node, len(self.victims))


@dataclass(frozen=True, slots=True)
class Reserved:
    """Its node is certain; what is there has not left it yet."""

    node_id: str
    reason: str


def waits(node: Node, leaving: int) -> str:
    """The words for an instance for which others leave a node."""
    return f"room is made on {node.name}: {leaving} of lower priority {'leaves' if leaving == 1 else 'leave'} it"


def reserved(request: PlacementRequest, node: Node, used: NodeUsage, leaving: NodeUsage) -> Placement | Reserved | None:
    """What becomes of a reservation: the place is free, or is waited for; None: it lapsed. `used` is without what it keeps
    itself, `leaving` what has still to go for whoever has a place kept there. A node that is suspect may be well again, so
    it is waited for."""
    if objection(request, node, used, choice=False) is None:
        return Placement(node.id)
    then = objection(request, node, used.without(leaving), choice=False)
    if leaving.instances and (then is None or node.health is NodeHealth.SUSPECT):
        return Reserved(node.id, waits(node, leaving.instances))
    return None


def shortlist(
    request: PlacementRequest,
    nodes: Sequence[Node],
    usage: Mapping[str, NodeUsage],
    evictable: Mapping[str, NodeUsage],
) -> list[Node]:
    """The nodes where eviction could make room, those first that lack least; `evictable` sums by node what may go."""
    choice = any(node.dependable for node in nodes)
    found = []
    for node in nodes:
        used, may_go = usage.get(node.id, NOTHING), evictable.get(node.id)
        if may_go is not None and objection(request, node, used.without(may_go), choice=choice) is None:
            found.append((share_after(request, used.memory_bytes, node.facts.memory_bytes), node.name, node))
    return [node for _, _, node in nsmallest(MOST_NODES, found, key=lambda each: each[:2])]


def plan_preemption(
    request: PlacementRequest, priority: int, candidates: Iterable[Candidate], serving: Mapping[str, int]
) -> Preemption | None:
    """The cheapest set on one of these nodes that makes room for an instance of this priority; None: there is none.

    `serving` says by app how many of its instances serve, and stay.
    """
    known = list(candidates)
    for spare in ({app_id: count - 1 for app_id, count in serving.items()}, None):
        found = [each for each in (_on(request, priority, one, spare) for one in known) if each is not None]
        if found:
            return min(found, key=lambda each: each[0])[1]
    return None


Cost = tuple[object, ...]


def _on(
    request: PlacementRequest, priority: int, candidate: Candidate, spare: Mapping[str, int] | None
) -> tuple[Cost, Preemption] | None:
    node, used = candidate.node, candidate.used
    victims = evictable(candidate.victims, priority)
    room = room_on(node, used)
    if objection(request, node, used.without(freed(victims)), choice=False) is not None:
        return None
    lack = (
        max(0, request.cpu_milli - room.cpu_milli),
        max(0, request.memory_bytes - room.memory_bytes),
        max(0, request.disk_bytes - room.disk_bytes),
    )
    chosen = _Search(victims, harms(victims), spare).cheapest(lack)
    if chosen is None:
        return None
    place = rank(request, node, used.without(freed(chosen)), candidate.beside, candidate.in_zone)
    return (len(chosen), cost_of(chosen, harms(victims)), place), Preemption(node, chosen)


def evictable(victims: Iterable[Victim], priority: int) -> tuple[Victim, ...]:
    """Those that may go for an instance of this priority, the cheapest first, of equals the smaller."""
    low = [victim for victim in victims if victim.priority <= priority - GAP]
    harm = harms(low)
    return tuple(sorted(low, key=lambda v: (cost_of((v,), harm), v.memory_bytes, v.instance_id)))


def freed(instances: Iterable[Victim | Instance]) -> NodeUsage:
    """What is free when these have gone."""
    gone = list(instances)
    return NodeUsage(
        cpu_milli=sum(each.cpu_milli for each in gone),
        memory_bytes=sum(each.memory_bytes for each in gone),
        disk_bytes=sum(each.disk_bytes for each in gone),
        instances=len(gone),
    )


def harms(victims: Iterable[Victim]) -> dict[str, int]:
    """By instance of one node: whether its going takes its process off the node, which makes a spread worse; one of
    several beside one another makes it better."""
    known = list(victims)
    of_kind = Counter((victim.app_id, victim.process) for victim in known)
    return {victim.instance_id: int(of_kind[victim.app_id, victim.process] == 1) for victim in known}


def cost_of(victims: Iterable[Victim], harm: Mapping[str, int]) -> int:
    """Among sets of equal size: their priorities in sum, then the harm to their spread."""
    return sum(victim.priority * _PRIORITY + harm[victim.instance_id] for victim in victims)


Lack = tuple[int, int, int]


@dataclass(slots=True)
class _Search:
    """The cheapest set of one node. `victims` come in the order of their cost; `spare` says how many that serve an app can
    do without, None: nothing is spared."""

    victims: Sequence[Victim]
    harm: Mapping[str, int]
    spare: Mapping[str, int] | None
    steps: int = 0
    best: tuple[Victim, ...] | None = None
    best_cost: int = 0
    costs: list[int] = field(default_factory=list)
    """Of the first n victims."""
    largest: list[Lack] = field(default_factory=list)
    """The most that any victim from here on frees."""

    def cheapest(self, lack: Lack) -> tuple[Victim, ...] | None:
        """The fewest that free what is lacking, and of those the cheapest."""
        self.costs = [0]
        for victim in self.victims:
            self.costs.append(self.costs[-1] + cost_of((victim,), self.harm))
        self.largest = [(0, 0, 0)]
        for victim in reversed(self.victims):
            cpu, memory, disk = self.largest[-1]
            self.largest.append(
                (max(cpu, victim.cpu_milli), max(memory, victim.memory_bytes), max(disk, victim.disk_bytes))
            )
        self.largest.reverse()
        for size in range(1, min(MOST_EVICTED, len(self.victims)) + 1):
            self.steps = MOST_STEPS
            self._extend(0, size, lack, ())
            if self.best is not None:
                return self.best
        return None

    def _extend(self, start: int, left: int, lack: Lack, chosen: tuple[Victim, ...]) -> None:
        """Try every way to add `left` victims from `start` on."""
        if not left:
            if max(lack) <= 0:
                self.best, self.best_cost = chosen, cost_of(chosen, self.harm)
            return
        cost = cost_of(chosen, self.harm)
        for at in range(start, len(self.victims) - left + 1):
            self.steps -= 1
            least = cost + self.costs[at + left] - self.costs[at]
            if self.steps < 0 or (self.best is not None and least >= self.best_cost):
                return
            if any(need > left * most for need, most in zip(lack, self.largest[at], strict=True)):
                return
            victim = self.victims[at]
            if self._may_go(victim, chosen):
                cpu, memory, disk = lack
                rest = (cpu - victim.cpu_milli, memory - victim.memory_bytes, disk - victim.disk_bytes)
                self._extend(at + 1, left - 1, rest, (*chosen, victim))

    def _may_go(self, victim: Victim, chosen: Sequence[Victim]) -> bool:
        if self.spare is None or not victim.serves:
            return True
        taken = sum(other.serves and other.app_id == victim.app_id for other in chosen)
        return taken < self.spare.get(victim.app_id, 0)
