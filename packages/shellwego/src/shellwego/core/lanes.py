"""Nodes in order of how full they are, cut into chunks that can be stepped over: see `core.views`."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shellwego.core.nodes import Node
from shellwego.core.placement import NodeUsage, PlacementRequest, Room

_CHUNK = 128


@dataclass(slots=True, eq=False)
class Seat:
    """A node as it stands now."""

    node: Node
    used: NodeUsage
    room: Room
    kind: int
    """Equal for nodes that the filters cannot tell apart, but by how full they are."""


Entry = tuple[int, str, str, Seat]
"""What it is ordered by in its lane, name and id of the node."""


@dataclass(slots=True, eq=False)
class _Chunk:
    """A run of a lane. `cpu_milli` and `disk_bytes` are at least the most that any of its nodes has free."""

    entries: list[Entry]
    cpu_milli: int = 0
    disk_bytes: int = 0

    def tighten(self) -> None:
        """Know exactly what was known as a bound."""
        self.cpu_milli = max(entry[3].room.cpu_milli for entry in self.entries)
        self.disk_bytes = max(entry[3].room.disk_bytes for entry in self.entries)


class Lane:
    """Nodes of one zone and one size of memory, in order."""

    __slots__ = ("_chunks", "_lasts", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self._chunks: list[_Chunk] = []
        self._lasts: list[Entry] = []
        """The last entry of each chunk."""

    def add(self, entry: Entry) -> None:
        """Put a node in its place."""
        if not self._chunks:
            self._chunks, self._lasts = [_Chunk([])], [entry]
        at = min(bisect_left(self._lasts, entry), len(self._chunks) - 1)
        chunk, room = self._chunks[at], entry[3].room
        insort(chunk.entries, entry)
        chunk.cpu_milli = max(chunk.cpu_milli, room.cpu_milli)
        chunk.disk_bytes = max(chunk.disk_bytes, room.disk_bytes)
        self._lasts[at] = chunk.entries[-1]
        if len(chunk.entries) > 2 * _CHUNK:
            self._split(at)

    def _split(self, at: int) -> None:
        entries = self._chunks[at].entries
        halves = [_Chunk(entries[:_CHUNK]), _Chunk(entries[_CHUNK:])]
        for half in halves:
            half.tighten()
        self._chunks[at : at + 1] = halves
        self._lasts[at : at + 1] = [half.entries[-1] for half in halves]

    def remove(self, entry: Entry) -> None:
        """Take a node out; it must be there, by this very entry."""
        at = bisect_left(self._lasts, entry)
        entries = self._chunks[at].entries
        del entries[bisect_left(entries, entry)]
        if entries:
            self._lasts[at] = entries[-1]
        else:
            del self._chunks[at], self._lasts[at]

    def move(self, old: Entry, new: Entry) -> None:
        """Put a node whose use has changed in its new place."""
        self.remove(old)
        self.add(new)

    def alike(self, order: int, request: PlacementRequest, passed: Mapping[str, int]) -> Iterator[Entry]:
        """As `first`, all entries of this place in the order."""
        for chunk in self._chunks[bisect_left(self._lasts, order, key=_order) :]:
            entries = chunk.entries
            for at in range(bisect_left(entries, order, key=_order), len(entries)):
                entry = entries[at]
                if entry[0] != order:
                    return
                room = entry[3].room
                fits = room.cpu_milli >= request.cpu_milli and room.disk_bytes >= request.disk_bytes
                if fits and entry[2] not in passed:
                    yield entry

    def first(self, low: int, high: int, request: PlacementRequest, passed: Mapping[str, int]) -> Entry | None:
        """The first entry from `low` to `high` whose node has CPU and disk for the request and is not in `passed`."""
        cpu, disk = request.cpu_milli, request.disk_bytes
        for chunk in self._chunks:
            entries = chunk.entries
            if entries[0][0] > high:
                return None
            if chunk.cpu_milli < cpu or chunk.disk_bytes < disk or entries[-1][0] < low:
                continue
            start = 0 if entries[0][0] >= low else bisect_left(entries, low, key=_order)
            for at in range(start, len(entries)):
                entry = entries[at]
                if entry[0] > high:
                    return None
                room = entry[3].room
                if room.cpu_milli >= cpu and room.disk_bytes >= disk and entry[2] not in passed:
                    return entry
            chunk.tighten()
        return None


def _order(entry: Entry) -> int:
    return entry[0]
