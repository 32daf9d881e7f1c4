"""The nodes with what is placed on them, kept so that the best one for an instance is found without looking at all.

The choice and the words of a refusal are those of a loop over all nodes with `placement.objection` and `placement.rank`;
that loop is the specification (tests), this is its index. What costs, costs by the change: a placement takes memory, CPU
and disk off one node, and moves that node within the lanes that it stands in.

A *view* holds the nodes that pass the filters of one kind of request, those apart that do not depend on how full a node is:
there are few such kinds at a time (a backend, a region, a set of labels), and those longest unused are forgotten. In a view
nodes of one zone and one size of memory share a *lane*, ordered by what is used, because within it order by share is order
by use, whatever the request asks for. A lane is cut into chunks that know the most CPU and disk any of their nodes has
free, so that a run of nodes full in one of these is stepped over as a whole.

Of nodes that are equal otherwise one that has the image is taken: beside the lanes it is known who has which. Either those
that have it are few, or one of them is soon met among the equals.

Nodes that have instances of the same process already (its *peers*) are stepped over too, and looked at one by one only
where no other is left: they are as many as the process has instances.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

from shellwego.core.lanes import Entry, Lane, Seat
from shellwego.core.nodes import Backend, Node
from shellwego.core.placement import (
    NOTHING,
    Home,
    NodeUsage,
    Objection,
    Placement,
    PlacementRequest,
    Refusal,
    Room,
    away,
    objection,
    rank,
    refusal,
    room_objection,
    room_on,
    share_after,
    standing_objection,
)
from shellwego.core.placement_rules import Spread

Zone = tuple[str, str]
"""Region and zone: two regions may name their zones alike."""
_MAX_VIEWS = 64
_MAX_REFUSALS = 256
_NO_LIMIT = 1 << 62
_UNBOUNDED = Room(cpu_milli=_NO_LIMIT, memory_bytes=_NO_LIMIT, disk_bytes=_NO_LIMIT)


def zone_of(node: Node) -> Zone:
    """What balance between zones is about."""
    return node.region, node.zone


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


@dataclass(slots=True, eq=False)
class _View:
    """The nodes that one kind of request may have, as far as that does not depend on how full they are."""

    like: PlacementRequest
    """A request of this kind."""
    packed: bool
    lanes: dict[tuple[Zone, int], Lane] = field(default_factory=dict)
    zones: dict[Zone, list[Lane]] = field(default_factory=dict)
    entries: dict[str, tuple[Lane, Entry]] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    """Nodes whose entries are behind."""
    others: list[tuple[Objection, int]] | None = None
    """What excludes all other nodes, and how many each; None: not known."""

    def seat(self, seat: Seat) -> None:
        zone, total = zone_of(seat.node), seat.node.facts.memory_bytes
        lane = self.lanes.get((zone, total))
        if lane is None:
            lane = self.lanes[zone, total] = Lane(total)
            self.zones.setdefault(zone, []).append(lane)
        entry = self._entry(seat)
        lane.add(entry)
        self.entries[seat.node.id] = (lane, entry)

    def _entry(self, seat: Seat) -> Entry:
        used = seat.used.memory_bytes
        return -used if self.packed else used, seat.node.name, seat.node.id, seat

    def unseat(self, node_id: str) -> None:
        known = self.entries.pop(node_id, None)
        if known is not None:
            known[0].remove(known[1])

    def catch_up(self) -> None:
        for node_id in self.moved:
            known = self.entries.get(node_id)
            if known is not None:
                lane, entry = known
                moved = self._entry(entry[3])
                lane.move(entry, moved)
                self.entries[node_id] = (lane, moved)
        self.moved.clear()

    def full(self, request: PlacementRequest) -> Iterator[tuple[Objection, int]]:
        """What these nodes lack for a request that fits on none of them: each the first thing it lacks, and the most of it
        that any such node has."""
        lacking = {"cpu_milli": 0, "memory_bytes": 0, "disk_bytes": 0}
        most = dict.fromkeys(lacking, -_NO_LIMIT)
        for _, entry in self.entries.values():
            room = entry[3].room
            if room.cpu_milli < request.cpu_milli:
                name, free = "cpu_milli", room.cpu_milli
            elif room.memory_bytes < request.memory_bytes:
                name, free = "memory_bytes", room.memory_bytes
            else:
                name, free = "disk_bytes", room.disk_bytes
            lacking[name] += 1
            most[name] = max(most[name], free)
        for name, count in lacking.items():
            found = room_objection(request, replace(_UNBOUNDED, **{name: most[name]}))
            if count and found is not None:
                yield found, count

    def best(
        self, request: PlacementRequest, lanes: Collection[Lane], passed: Mapping[str, int], holders: Set[str]
    ) -> str | None:
        """The node of these lanes that is emptiest with the request on it, or fullest where they are packed, of those that
        are not in `passed`; of equals one of `holders`, which have its image."""
        best: tuple[float, str, str] | None = None
        for lane in lanes:
            entry = self._first(lane, request, passed)
            if entry is not None:
                found = (self._level(lane, entry[0], request), entry[1], entry[2])
                best = found if best is None else min(best, found)
        if best is None or not holders or best[2] in holders:
            return best[2] if best else None
        return self._holding(request, self._alike(best[0], request, lanes, passed), passed, holders) or best[2]

    def _first(self, lane: Lane, request: PlacementRequest, passed: Mapping[str, int]) -> Entry | None:
        least = request.memory_bytes - lane.total
        return lane.first(least, 0, request, passed) if self.packed else lane.first(0, -least, request, passed)

    def _level(self, lane: Lane, order: int, request: PlacementRequest) -> float:
        """The smaller the better."""
        if self.packed:
            return -share_after(request, -order, lane.total)
        return share_after(request, order, lane.total)

    def _alike(
        self, level: float, request: PlacementRequest, lanes: Iterable[Lane], passed: Mapping[str, int]
    ) -> dict[Lane, int]:
        """The places in these lanes whose nodes are as good as the best one, which is on this level."""
        firsts = ((lane, self._first(lane, request, passed)) for lane in lanes)
        orders = {lane: entry[0] for lane, entry in firsts if entry is not None}
        return {lane: order for lane, order in orders.items() if self._level(lane, order, request) == level}

    def _holding(
        self, request: PlacementRequest, places: Mapping[Lane, int], passed: Mapping[str, int], holders: Set[str]
    ) -> str | None:
        """Of the nodes at these places that have the image the first by name. No more nodes are looked at than twice as
        many as have it: where these are many, one of them is met soon."""
        found: list[tuple[str, str]] = []
        left = len(holders)
        for lane, order in places.items():
            for entry in lane.alike(order, request, passed):
                left -= 1
                if left < 0:
                    return self._among(request, places, passed, holders)
                if entry[2] in holders:
                    found.append(entry[1:3])
                    break
        return min(found)[1] if found else None

    def _among(
        self, request: PlacementRequest, places: Mapping[Lane, int], passed: Mapping[str, int], holders: Set[str]
    ) -> str | None:
        """As `_holding`, by a look at all that have it."""
        known = (self.entries[node_id] for node_id in holders if node_id in self.entries and node_id not in passed)
        found = [
            entry[1:3]
            for lane, entry in known
            if places.get(lane) == entry[0] and room_objection(request, entry[3].room) is None
        ]
        return min(found)[1] if found else None


_NO_PEERS = Peers()
_NOWHERE: frozenset[str] = frozenset()


class Fleet:
    """Nodes and their usage. `place` decides, `take` notes what was decided, `put` what became known of a node."""

    def __init__(self, nodes: Iterable[Node] = (), usage: Mapping[str, NodeUsage] | None = None) -> None:
        self._seats: dict[str, Seat] = {}
        self._views: dict[object, _View] = {}
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

    def _packed(self, view: _View, request: PlacementRequest) -> str | None:
        return view.best(request, view.lanes.values(), {}, self._holders_of(request))

    def _spread(self, view: _View, request: PlacementRequest, peers: Peers) -> str | None:
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

    def _beside_peers(self, view: _View, request: PlacementRequest, zones: Iterable[Zone], peers: Peers) -> str | None:
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

    def _view(self, request: PlacementRequest) -> _View:
        kind = (*_kind(request), *self._size_class(request), request.rules.spread is Spread.NONE)
        view = self._views.pop(kind, None) or self._build(request)
        self._views[kind] = view
        if len(self._views) > _MAX_VIEWS:
            del self._views[next(iter(self._views))]
        return view

    def _build(self, request: PlacementRequest) -> _View:
        view = _View(request, packed=request.rules.spread is Spread.NONE)
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

    def _refuse(self, view: _View, request: PlacementRequest) -> Refusal:
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

    def _others(self, view: _View) -> list[tuple[Objection, int]]:
        """What excludes nodes from a view, and how many."""
        kinds = Counter(seat.kind for node_id, seat in self._seats.items() if node_id not in view.entries)
        examples = {seat.kind: seat.node for seat in self._seats.values()}
        choice = self._choice
        found = ((standing_objection(view.like, examples[kind], choice=choice), count) for kind, count in kinds.items())
        return [(fault, count) for fault, count in found if fault is not None]


def _levels(view: _View, request: PlacementRequest, peers: Peers) -> Iterator[list[Zone]]:
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
    return request.backend, request.volumes, request.memory, rules.region, rules.zone, *labels


def _standing(node: Node) -> tuple[object, ...]:
    """What the filters read of a node, and what its lane follows from, apart from how full it is."""
    facts = node.facts
    labels = tuple(sorted(node.labels.items()))
    flaps = node.flapping_since is not None
    return node.health, node.scheduling, flaps, node.region, node.zone, labels, facts.backends, facts.memory_bytes
