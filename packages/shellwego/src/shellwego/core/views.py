"""The nodes that can serve one kind of request, in an order in which the best is found without looking at all of them.

A *view* holds the nodes that pass the filters of one kind of request, except for those filters that depend on how full
a node is. In it, nodes of one zone and one size of memory share a *lane*, ordered by what is used: within a lane the
order by share is the order by use, whatever the request asks for. A lane is cut into chunks. Each chunk knows the most
CPU and disk that any of its nodes has free, so that a run of nodes that are full in one of these is stepped over as a
whole.

Of nodes that are equal otherwise, one that has the image is taken; the caller says which nodes have it (*holders*).
Either those are few, or one of them is soon met among the equals.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

from shellwego.core.lanes import Entry, Lane, Seat
from shellwego.core.nodes import Zone, zone_of
from shellwego.core.placement import Objection, PlacementRequest, Room, room_objection, share_after

_NO_LIMIT = 1 << 62
_UNBOUNDED = Room(cpu_milli=_NO_LIMIT, memory_bytes=_NO_LIMIT, disk_bytes=_NO_LIMIT)


@dataclass(slots=True, eq=False)
class View:
    """See the module's head."""

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
        """Take a node in."""
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
        """Take a node out, if it is in."""
        known = self.entries.pop(node_id, None)
        if known is not None:
            known[0].remove(known[1])

    def catch_up(self) -> None:
        """Put the nodes that moved in their places."""
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
