"""Places the instances of an app that have no node yet, and stores the choice.

An instance is looked at once its volumes are free. One that is to go on with the memory of a sleeping instance goes to
a node that can take that memory, or else begins without it. Any other goes to a node with room, to the one where a
place is kept for it, or to one where evictions can make room. Instances are placed one after another, and each
placement counts when the next one is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from shellwego.control.facts import placement_request, process_peers, releases_of
from shellwego.control.holds import hold, obstacle
from shellwego.control.memories import leave, with_memory
from shellwego.control.placer import Placer
from shellwego.control.preemption import find_room, make_room, reservation
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.instances import Desired, Instance, Phase
from shellwego.core.placement import Placement, PlacementRequest, Refusal
from shellwego.core.preemption import Preemption, Reserved
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

Outcome = Placement | Preemption | Reserved | Refusal


def waiting_instances(tx: Transaction, app: App) -> list[Instance]:
    """Those of an app that have no node yet, and are to have one."""
    pending = tx.instances.select(eq("app_id", app.id), eq("phase", Phase.PENDING.value))
    return sorted((i for i in pending if i.desired is not Desired.STOP), key=lambda i: (i.process, i.slot, i.id))


def placements(tx: Transaction, app: App, placer: Placer) -> Iterator[tuple[Instance, Outcome]]:
    """Where the app's waiting instances go; without those for which there is nothing new to say."""
    waiting = waiting_instances(tx, app)
    if not waiting:
        return
    search = _Search(tx, app, placer, waiting)
    for instance in waiting:
        outcome = search.outcome(instance)
        if outcome is not None and _is_news(instance, outcome):
            yield instance, outcome


def store_placements(unit: Unit, app: App, placer: Placer) -> bool:
    """Give the app's waiting instances what is found for them. Whether there was anything to store."""
    changed = False
    for instance, outcome in placements(unit.tx, app, placer):
        changed = True
        match outcome:
            case Placement(node_id):
                _assign(unit, instance, node_id)
            case Preemption():
                make_room(unit, app, instance, outcome)
                placer.see(unit.tx, outcome.node.id)
            case Refusal(reason) if instance.memory_of:
                leave(unit, app, instance, reason)
            case Reserved(reason=reason):
                unit.tx.instances.update(replace(instance, placement_reason=reason))
            case Refusal(reason):
                unit.tx.instances.update(replace(instance, placement_reason=reason, reserved_node_id=""))
    return changed


def _assign(unit: Unit, instance: Instance, node_id: str) -> None:
    placed = replace(
        instance,
        node_id=node_id,
        phase=Phase.ASSIGNED,
        phase_since=unit.now(),
        placement_reason="",
        reserved_node_id="",
    )
    hold(unit, unit.tx.instances.update(placed))
    unit.hint(subjects.assignments(node_id))


class _Search:
    """One look at all that waits of an app.

    Room that nothing could make is not looked for again for others that need the same: that reads all nodes."""

    def __init__(self, tx: Transaction, app: App, placer: Placer, waiting: Sequence[Instance]) -> None:
        self._tx = tx
        self._app = app
        self._placer = placer
        placed = process_peers(tx, app.id)
        self._peers = {process: placer.peers(placed.get(process, {})) for process in {i.process for i in waiting}}
        self._releases = releases_of(tx, [instance.release_id for instance in waiting])
        self._in_vain: list[tuple[int, PlacementRequest]] = []
        """What there was no room for, with the priority. One process may need several: a one-off run has no volumes."""
        self._claimed: set[str] = set()
        """Volumes that those placed before in this look are to have."""

    def outcome(self, instance: Instance) -> Outcome | None:
        """What becomes of an instance; None: that is not known yet."""
        release = self._releases[instance.release_id]
        if waits := obstacle(self._tx, instance, release.config, self._claimed):
            return Refusal(waits)
        request = placement_request(self._tx, instance, release)
        if instance.memory_of:
            return self._where_memory_fits(instance, request)
        found = reservation(self._tx, instance, request) or self._place(instance, request)
        if isinstance(found, Refusal):
            return self._by_eviction(instance, request) or found
        if isinstance(found, Placement):
            self._claimed |= release.config.volumes_of(instance.process)
        return found

    def _place(self, instance: Instance, request: PlacementRequest) -> Placement | Refusal:
        return self._placer.place(self._tx, request, self._peers[instance.process])

    def _where_memory_fits(self, instance: Instance, request: PlacementRequest) -> Outcome | None:
        """Nothing is left behind for what may only be unknown yet."""
        found = self._place(instance, with_memory(self._tx, request, instance))
        return found if isinstance(found, Placement) or self._placer.current() else None

    def _by_eviction(self, instance: Instance, request: PlacementRequest) -> Preemption | None:
        needed = (instance.priority, request)
        if not self._placer.current() or needed in self._in_vain:
            return None
        beside = self._peers[instance.process]
        room = find_room(self._tx, self._app, request, instance.priority, beside.by_node)
        if room is None:
            self._in_vain.append(needed)
        else:
            beside.add(room.node)
        return room


def _is_news(instance: Instance, outcome: Outcome) -> bool:
    match outcome:
        case Placement() | Preemption():
            return True
        case Reserved(reason=reason):
            return reason != instance.placement_reason
        case Refusal(reason):
            return bool(instance.memory_of) or reason != instance.placement_reason or bool(instance.reserved_node_id)
