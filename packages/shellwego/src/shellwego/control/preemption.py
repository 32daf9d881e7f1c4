"""Room that is made by eviction: what `core.preemption` plans, read and stored in one transaction.

A victim is told to leave by the mark that a drain leaves, too (`Eviction.FORCED`), so the rollout loop takes it out of the
routes, stops it, and fills its slot elsewhere. Its row says for whom. The one that it goes for keeps its place meanwhile by
`reserved_node_id`, which counts as used on that node (`facts.node_usage`), and is placed once the others are gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from shellwego.control.announcements import announce
from shellwego.control.changes import instance_data
from shellwego.control.facts import AMOUNTS, node_usage
from shellwego.control.instances import LIVE_PHASES, instances_on
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.instances import SERVING, Desired, Eviction, Instance, OwnerKind
from shellwego.core.nodes import Node, zone_of
from shellwego.core.placement import NOTHING, NodeUsage, Placement, PlacementRequest, objection
from shellwego.core.preemption import (
    GAP,
    Candidate,
    Preemption,
    Reserved,
    Victim,
    freed,
    plan_preemption,
    reserved,
    shortlist,
)
from shellwego.ports.store import Op, Transaction, Where, eq, within
from shellwego.wire import subjects

_STAYING = (
    eq("owner", OwnerKind.APP.value),
    eq("desired", Desired.SERVE.value),
    within("eviction", (Eviction.NONE.value, Eviction.QUEUED.value)),
)
"""What serves, or will, and was not told to leave. Never a one-off run: half of it may be done."""
_AT_ONCE = 500
"""Ids in one question to the store."""


def find_room(
    tx: Transaction, app: App, request: PlacementRequest, priority: int, peers: Mapping[str, int]
) -> Preemption | None:
    """What would make room for an instance of this app and priority; `peers` counts its process by node. None: nothing
    would, or there is room. No app makes room for itself: what it does without is its rollout's to say."""
    holders = _holders(tx)
    may_go = _may_go(tx, priority, holders)
    if not may_go:
        return None
    nodes, usage = tx.nodes.select(), node_usage(tx)
    choice = any(node.dependable for node in nodes)
    if any(objection(request, node, usage.get(node.id, NOTHING), choice=choice) is None for node in nodes):
        return None
    chosen = shortlist(request, nodes, usage, may_go)
    victims = {node.id: _victims(tx, app, node, priority, holders) for node in chosen}
    in_zone: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        in_zone[zone_of(node)] += peers.get(node.id, 0)
    candidates = [
        Candidate(
            node=node,
            used=usage.get(node.id, NOTHING),
            victims=victims[node.id],
            beside=peers.get(node.id, 0),
            in_zone=in_zone[zone_of(node)],
        )
        for node in chosen
    ]
    apps = {victim.app_id for each in victims.values() for victim in each}
    return plan_preemption(request, priority, candidates, _serving(tx, sorted(apps)))


def _may_go(tx: Transaction, priority: int, holders: Collection[str]) -> dict[str, NodeUsage]:
    """By node, the sum of what may be evicted for this priority."""
    low = Where("priority", Op.LTE, priority - GAP)
    everything = _sums(tx, low)
    known = sorted(holders)
    for start in range(0, len(known), _AT_ONCE):
        for node_id, bound in _sums(tx, low, within("id", known[start : start + _AT_ONCE])).items():
            everything[node_id] = everything[node_id].without(bound)
    return {node_id: sum_ for node_id, sum_ in everything.items() if sum_.instances}


def _sums(tx: Transaction, *conditions: Where) -> dict[str, NodeUsage]:
    """By node, what those take that stay there and meet the conditions."""
    sums = tx.instances.sums("node_id", AMOUNTS, within("phase", LIVE_PHASES), *_STAYING, *conditions)
    return {
        node_id: NodeUsage(instances=count, cpu_milli=cpu, memory_bytes=memory, disk_bytes=disk)
        for node_id, (count, cpu, memory, disk) in sums.items()
        if node_id
    }


def _holders(tx: Transaction) -> frozenset[str]:
    """Instances that hold a volume, which never go: what needs it could come again on that node only, whose room is then
    another's."""
    return frozenset(volume.instance_id for volume in tx.volumes.select() if volume.instance_id)


def _victims(tx: Transaction, app: App, node: Node, priority: int, holders: Collection[str]) -> tuple[Victim, ...]:
    """As `_may_go` counts them."""
    low = Where("priority", Op.LTE, priority - GAP)
    rows = tx.instances.select(eq("node_id", node.id), low, within("phase", LIVE_PHASES), *_STAYING)
    return tuple(
        Victim(
            instance_id=row.id,
            app_id=row.app_id,
            process=row.process,
            priority=row.priority,
            cpu_milli=row.cpu_milli,
            memory_bytes=row.memory_bytes,
            disk_bytes=row.disk_bytes,
            serves=row.serving,
        )
        for row in rows
        if row.app_id != app.id and row.id not in holders
    )


def _serving(tx: Transaction, app_ids: Sequence[str]) -> dict[str, int]:
    """By app: how many of its instances serve, and stay."""
    phases = tuple(phase.value for phase in SERVING)
    found: dict[str, int] = {}
    for start in range(0, len(app_ids), _AT_ONCE):
        some = within("app_id", app_ids[start : start + _AT_ONCE])
        sums = tx.instances.sums("app_id", (), some, within("phase", phases), *_STAYING)
        found |= {app_id: count for app_id, (count,) in sums.items()}
    return found


def reservation(tx: Transaction, instance: Instance, request: PlacementRequest) -> Placement | Reserved | None:
    """What becomes of the place that is kept for an instance; None: it has none, or cannot have it any more.

    Others may wait for places on the same node. What is kept for those is used, so what leaves for them counts as leaving.
    """
    node = tx.nodes.get(instance.reserved_node_id) if instance.reserved_node_id else None
    if node is None:
        return None
    here = instances_on(tx, node.id)
    used = node_usage(tx, node.id).get(node.id, NOTHING).without(replace(freed([instance]), instances=0))
    return reserved(request, node, used, freed(row for row in here if row.preempted))


def make_room(unit: Unit, app: App, instance: Instance, preemption: Preemption) -> None:
    """Keep the place for an instance of `app`, and tell what is there to leave."""
    node = preemption.node
    unit.tx.instances.update(replace(instance, reserved_node_id=node.id, placement_reason=preemption.reason))
    data = {**instance_data(instance), "node": node.id, "evicts": str(len(preemption.victims))}
    announce(unit, app, "instance.preempting", data, resource=instance.id)
    _evict(unit, (victim.instance_id for victim in preemption.victims), instance)


def _evict(unit: Unit, victim_ids: Iterable[str], instance: Instance) -> None:
    for victim in filter(None, map(unit.tx.instances.get, victim_ids)):
        app = unit.tx.apps.get(victim.app_id)
        unit.tx.instances.update(replace(victim, eviction=Eviction.FORCED, makes_room_for=instance.id))
        if app is not None:  # whose instance needs the place is not theirs to know
            data = {**instance_data(victim), "how": "preempted", "priority": str(victim.priority)}
            announce(unit, app, "instance.evicted", data, resource=victim.id, severity="warning")
            unit.hint(subjects.app(app.id))
