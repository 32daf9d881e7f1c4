"""The nodes with what is placed on them, kept so that the best one for an instance is found without looking at all.

The choice and the words of a refusal are those of a loop over all nodes with `placement.objection` and `placement.rank`;
that loop is the specification (tests), this is its index. What costs, costs by the change: a placement takes memory, CPU
and disk off one node, and moves that node within the lanes that it stands in. There is a view (`views`) of the nodes for
each kind of request that was met of late: there are few such kinds at a time (a backend, a region, a set of labels), and
those longest unused are forgotten.

Nodes that have instances of the same process already (its *peers*) are stepped over too, and looked at one by one only
where no other is left: they are as many as the process has instances.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from shellwego.core.lanes import Seat
from shellwego.core.nodes import Backend, Node, Zone, zone_of
from shellwego.core.placement import (
    NOTHING,
    Home,
    NodeUsage,
    Objection,
    Placement,
    PlacementRequest,
    Refusal,
    away,
    objection,
    rank,
    refusal,
    room_objection,
    room_on,
    standing_objection,
)
from shellwego.core.placement_rules import Spread
from shellwego.core.views import View

_MAX_VIEWS = 64
_MAX_REFUSALS = 256


@dataclass(slots=True)
class Peers:
    """Where instances of one process are already: how many on each such node, and in each such zone."""

    by_node: dict[str, int] = field(default_factory=dict)
    by_zone: dict[Zone, int] = field(default_factory=dict)

    def add(self, node: Node, count: int = 1) -> None:
        """Note more of them on a node."""
        zone = zone_of(node)
        self.by_node[node.id] = self.by_node.get(node.id, 0) + count
        self.by_zone[zone] = self.by_zone.get(zone, 0) + count


_NO_PEERS = Peers()
_NOWHERE: frozenset[str] = frozenset()


class Fleet:
    """Nodes and their usage. `place` decides, `take` notes what was decided, `put` what became known of a node."""

    def __init__(self, nodes: Iterable[Node] = (), usage: Mapping[str, NodeUsage] | None = None) -> None:
        self._seats: dict[str, Seat] = {}
        self._views: dict[object, View] = {}
        self._refusals: dict[object, Refusal] = {}
        self._kinds: dict[object, int] = {}
        self._holders: dict[str, set[str]] = {}
        """By digest: the nodes that have the image."""
        self._dependable = 0
        """How many nodes are."""
        self._limits: tuple[list[int], list[int]] = ([], [])
        """Sizes of VMs, in vCPUs and in memory, at which backends begin to refuse."""
        for node in nodes:
            self.put(node, (usage or {}).get(node.id, NOTHING))

    def __len__(self) -> int:
        return len(self._seats)

    def used(self, node_id: str) -> NodeUsage:
        """What is on a node; nothing on one that is not known."""
        seat = self._seats.get(node_id)
        return seat.used if seat else NOTHING

    def put(self, node: Node, used: NodeUsage) -> None:
        """Know a node, or know it anew."""
        self._know_limits(node.facts.backends)
        kind = self._kinds.setdefault(_standing(node), len(self._kinds))
        seat = self._seats.get(node.id)
        if seat is None or seat.kind != kind or seat.node.name != node.name:
            self.remove(node.id)
            self._count_dependable(node.dependable)
            seat = self._seats[node.id] = Seat(node, used, room_on(node, used), kind)
            self._know_images(node.id, (), node.facts.images)
            for view in self._views.values():
                if standing_objection(view.like, node, choice=self._choice) is None:
                    view.seat(seat)
        self._change(seat, node, used)

    def remove(self, node_id: str) -> None:
        """Forget a node, if it is known."""
        seat = self._seats.pop(node_id, None)
        if seat is not None:
            self._count_dependable(-seat.node.dependable)
            self._know_images(node_id, seat.node.facts.images, ())
        for view in self._views.values():
            view.unseat(node_id)
            view.others = None
        self._refusals.clear()

    def fits(self, node_id: str, request: PlacementRequest) -> bool:
        """Whether an instance may go to a node."""
        seat = self._seats.get(node_id)
        return seat is not None and objection(request, seat.node, seat.used, choice=self._choice) is None

    def peers(self, counts: Mapping[str, int]) -> Peers:
        """Where instances of a process are, from how many each node has; of nodes that are not known nothing is noted."""
        peers = Peers()
        for node_id, count in counts.items():
            seat = self._seats.get(node_id)
            if seat is not None:
                peers.add(seat.node, count)
        return peers

    def take(self, node_id: str, request: PlacementRequest, peers: Peers | None = None) -> None:
        """Note that an instance goes to a node; in `peers`, too."""
        seat = self._seats[node_id]
        self._change(seat, seat.node, seat.used.plus(request))
        if peers is not None:
            peers.add(seat.node)

    def place(self, request: PlacementRequest, peers: Peers = _NO_PEERS) -> Placement | Refusal:
        """The best node for an instance, or why there is none."""
        if request.home is not None:
            return self._at_home(request, request.home)
        view = self._view(request)
        view.catch_up()
        node_id = self._packed(view, request) if view.packed else self._spread(view, request, peers)
        return Placement(node_id) if node_id is not None else self._refuse(view, request)

    def _at_home(self, request: PlacementRequest, home: Home) -> Placement | Refusal:
        """The only node that it may be, or why that cannot have it."""
        seat = self._seats.get(home.node_id)
        found = objection(request, seat.node, seat.used, choice=self._choice) if seat else None
        if seat is not None and found is None:
            return Placement(home.node_id)
        others = len(self._seats) - (seat is not None)
        told = [(found, 1)] if found is not None else []
        return refusal([*told, (away(home), others)] if others else told)

    def _packed(self, view: View, request: PlacementRequest) -> str | None:
        return view.best(request, view.lanes.values(), {}, self._holders_of(request))

    def _spread(self, view: View, request: PlacementRequest, peers: Peers) -> str | None:
        """Zones in the order of how many of the process they have; in them nodes without any come first."""
        holders = self._holders_of(request)
        if not peers.by_node:
            return view.best(request, view.lanes.values(), {}, holders)
        for zones in _levels(view, request, peers):
            lanes = [lane for zone in zones for lane in view.zones[zone]]
            alone = view.best(request, lanes, peers.by_node, holders)
            found = alone or self._beside_peers(view, request, zones, peers)
            if found is not None:
                return found
        return None

    def _beside_peers(self, view: View, request: PlacementRequest, zones: Iterable[Zone], peers: Peers) -> str | None:
        """The best node of these zones that has peers."""
        within = set(zones)
        seats = (view.entries[node_id][1][3] for node_id in peers.by_node if node_id in view.entries)
        fitting = [s for s in seats if zone_of(s.node) in within and room_objection(request, s.room) is None]
        counts = peers.by_node
        best = min(fitting, key=lambda s: rank(request, s.node, s.used, counts[s.node.id], 0), default=None)
        return best.node.id if best else None

    def _holders_of(self, request: PlacementRequest) -> Set[str]:
        return self._holders.get(request.image, _NOWHERE)

    def _know_images(self, node_id: str, had: Collection[str], has: Collection[str]) -> None:
        """Note that a node has these images, and no more the others that it had."""
        if had == has:
            return
        for digest in set(has).difference(had):
            self._holders.setdefault(digest, set()).add(node_id)
        for digest in set(had).difference(has):
            self._holders[digest].discard(node_id)
            if not self._holders[digest]:
                del self._holders[digest]

    @property
    def _choice(self) -> bool:
        return self._dependable > 0

    def _count_dependable(self, more: int) -> None:
        before = self._choice
        self._dependable += more
        if self._choice is not before:
            self._views.clear()

    def _change(self, seat: Seat, node: Node, used: NodeUsage) -> None:
        self._know_images(node.id, seat.node.facts.images, node.facts.images)
        seat.node, seat.used, seat.room = node, used, room_on(node, used)
        for view in self._views.values():
            view.moved.add(node.id)
        self._refusals.clear()

    def _view(self, request: PlacementRequest) -> View:
        kind = (*_kind(request), *self._size_class(request), request.rules.spread is Spread.NONE)
        view = self._views.pop(kind, None) or self._build(request)
        self._views[kind] = view
        if len(self._views) > _MAX_VIEWS:
            del self._views[next(iter(self._views))]
        return view

    def _build(self, request: PlacementRequest) -> View:
        view = View(request, packed=request.rules.spread is Spread.NONE)
        judged: dict[int, bool] = {}
        for seat in self._seats.values():
            if seat.kind not in judged:
                judged[seat.kind] = standing_objection(request, seat.node, choice=self._choice) is None
            if judged[seat.kind]:
                view.seat(seat)
        return view

    def _size_class(self, request: PlacementRequest) -> tuple[int, int]:
        """Requests of equal classes are large enough, or too large, for the same backends."""
        vcpus, memory = self._limits
        return bisect_left(vcpus, request.vcpus), bisect_left(memory, request.memory_bytes)

    def _know_limits(self, backends: Iterable[Backend]) -> None:
        for backend in backends:
            pairs = zip(self._limits, (backend.max_vcpus, backend.max_memory_bytes), strict=True)
            for known, limit in pairs:
                at = bisect_right(known, limit)
                if limit and (not at or known[at - 1] != limit):
                    known.insert(at, limit)
                    self._views.clear()

    def _refuse(self, view: View, request: PlacementRequest) -> Refusal:
        """Why no node fits. Looks at every node of the view, once for as long as nothing changes."""
        key = (*_kind(request), request.vcpus, request.cpu_milli, request.memory_bytes, request.disk_bytes)
        known = self._refusals.get(key)
        if known is None:
            if len(self._refusals) >= _MAX_REFUSALS:
                self._refusals.clear()
            if view.others is None:
                view.others = self._others(view)
            known = self._refusals[key] = refusal([*view.others, *view.full(request)])
        return known

    def _others(self, view: View) -> list[tuple[Objection, int]]:
        """What excludes nodes from a view, and how many."""
        kinds = Counter(seat.kind for node_id, seat in self._seats.items() if node_id not in view.entries)
        examples = {seat.kind: seat.node for seat in self._seats.values()}
        choice = self._choice
        found = ((standing_objection(view.like, examples[kind], choice=choice), count) for kind, count in kinds.items())
        return [(fault, count) for fault, count in found if fault is not None]


def _levels(view: View, request: PlacementRequest, peers: Peers) -> Iterator[list[Zone]]:
    """The zones of the view that are equally good, best first."""
    if request.rules.spread is not Spread.ZONE:
        yield list(view.zones)
        return
    has = peers.by_zone
    for level in sorted({has.get(zone, 0) for zone in view.zones}):
        yield [zone for zone in view.zones if has.get(zone, 0) == level]


def _kind(request: PlacementRequest) -> tuple[object, ...]:
    """What the filters read of a request, apart from sizes."""
    rules = request.rules
    labels = (tuple(sorted(each.items())) for each in (rules.require, rules.tolerate))
    return request.backend, request.volumes, request.encryption, request.memory, rules.region, rules.zone, *labels


def _standing(node: Node) -> tuple[object, ...]:
    """What the filters read of a node, and what its lane follows from, apart from how full it is."""
    facts = node.facts
    labels = tuple(sorted(node.labels.items()))
    flaps = node.flapping_since is not None
    return node.health, node.scheduling, flaps, node.region, node.zone, labels, facts.backends, facts.memory_bytes
