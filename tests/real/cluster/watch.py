"""Whether instances take declared steps only (L4), and how often another server leads: seen in the database, from outside,
all the time.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from shellwego.core.instances import PHASE_MOVES, Phase
from tests.real.beside import Beside
from tests.real.cluster.hosts import Cluster

EVERY_S = 0.25


class Watch(Beside):
    """Looks while the context is open. Between two looks an instance may take several steps, each of them declared."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster
        self._phases: dict[str, Phase] = {}
        self.undeclared: list[str] = []
        self.looks = 0
        self.takeovers = 0
        """Of the loop that judges nodes. A server that begins to judge waits for a term of its own."""
        self._leader = ""

    def _work(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                rows = self._cluster.sql("SELECT id, phase FROM instances")
                leader = self._cluster.sql("SELECT holder FROM leases WHERE id = 'loop.nodes'")
            except psycopg.OperationalError:  # the database is what is away
                continue
            self.looks += 1
            self._led_by(str(leader))
            for id_, phase in rows:
                self._seen(str(id_), Phase(str(phase)))

    def _led_by(self, leader: str) -> None:
        self.takeovers += bool(self._leader) and leader != self._leader
        self._leader = leader

    def _seen(self, id_: str, phase: Phase) -> None:
        before = self._phases.get(id_, phase)
        if phase is not before and phase not in _REACHED[before]:
            self.undeclared.append(f"{id_}: {before} → {phase}")
        self._phases[id_] = phase


def _reached(moves: Mapping[Phase, frozenset[Phase]], start: Phase) -> frozenset[Phase]:
    found, fresh = set[Phase](), {start}
    while fresh:
        fresh = {after for phase in fresh for after in moves[phase]} - found
        found |= fresh
    return frozenset(found)


_REACHED = {phase: _reached(PHASE_MOVES, phase) for phase in Phase}
