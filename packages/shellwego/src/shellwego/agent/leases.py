"""The leases of this host's volumes: renewed by each report that is answered, enforced by the host, and watched here.

What counts is what the host enforces: a lease is held from when the engine took its new end, and not from when it was
granted. See `core.volumeleases`.
"""

from __future__ import annotations

from collections.abc import Mapping

from shellwego.core.assignments import Assignment, VolumeOrder
from shellwego.core.volumeleases import Lapse, VolumeLease, lapse, leases_of
from shellwego.ports.clock import Clock
from shellwego.ports.engine import FencingEngine


class Leases:
    """Those of one host. Nothing is held before the first report of this agent's life was answered."""

    def __init__(self, engine: FencingEngine | None, clock: Clock) -> None:
        """`engine` None: this host enforces none, so it holds none."""
        self._engine = engine
        self._clock = clock
        self._orders: Mapping[str, VolumeOrder] = {}
        self._asked_at: float | None = None
        self.held: Mapping[str, VolumeLease] = {}
        """By volume: those that the host enforces."""

    def assign(self, orders: tuple[VolumeOrder, ...]) -> bool:
        """Take new orders. Whether `enforce` has something to do."""
        self._orders = {order.volume_id: order for order in orders}
        return self._due()

    def renewed(self, asked_at: float) -> bool:
        """A report was answered that began then. Whether `enforce` has something to do."""
        self._asked_at = asked_at
        return self._due()

    async def enforce(self) -> bool:
        """Have the host enforce the leases as they are; whether other volumes have one than before."""
        wanted, before = self._wanted(), self.held.keys()
        if self._engine is None or wanted == self.held:
            return False
        await self._engine.fence_volumes({id_: lease.end_at for id_, lease in wanted.items()})
        self.held = wanted
        return wanted.keys() != before

    def lapses(self, assignments: tuple[Assignment, ...]) -> dict[str, Lapse]:
        """By instance: that it may not begin for want of a lease, and how long what runs of it has."""
        now = self._clock.monotonic()
        found = {
            item.instance_id: lapse(item.workload, self._orders, self.held, now)
            for item in assignments
            if item.present and item.workload.mounts
        }
        return {instance_id: each for instance_id, each in found.items() if each is not None}

    def _due(self) -> bool:
        return self._engine is not None and self._wanted() != self.held

    def _wanted(self) -> dict[str, VolumeLease]:
        """Those that are held are renewed. One that is new is not begun when much of its term is over, for whatever has the
        volume would be stopped soon; it begins with the next report that is answered."""
        if self._asked_at is None:
            return {}
        leases, now = leases_of(self._orders.values(), self._asked_at), self._clock.monotonic()
        return {id_: lease for id_, lease in leases.items() if id_ in self.held or now < lease.begin_by}
