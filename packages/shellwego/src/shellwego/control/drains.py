"""Nodes that are emptied: what `core.drain` plans, made in one transaction.

An instance is told to leave by a mark on its row (`Instance.eviction`); the rollout loop does the rest, as it does with all
that is to be replaced. So a drain needs no memory of its own, and a control plane that takes over goes on where the last
one was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from shellwego.control.changes import apply
from shellwego.control.evictions import evict
from shellwego.control.facts import evicted_facts, node_usage, placement_request, releases_of
from shellwego.control.instances import instances_on
from shellwego.control.unit import Unit
from shellwego.control.volumedrains import send_away, volumes_left
from shellwego.core.changes import Stop
from shellwego.core.drain import DrainFacts, DrainPlan, plan_drain, released
from shellwego.core.evicted import Waiting
from shellwego.core.instances import Desired, Eviction, OwnerKind
from shellwego.core.nodes import DrainOrder, Node, Scheduling
from shellwego.ports.store import Transaction
from shellwego.wire import subjects

TOLD_REASONS = 5
"""In one event."""


def drain_plan(tx: Transaction, node: Node) -> DrainPlan | None:
    """What is next for a node, and what all that is left on it waits for; None where it is not being emptied."""
    if node.drain is None or node.scheduling is not Scheduling.DRAINING:
        return None
    return plan_drain(_facts(tx, node, node.drain), tx.now())


def _facts(tx: Transaction, node: Node, order: DrainOrder) -> DrainFacts:
    instances = instances_on(tx, node.id)
    staying = [i for i in instances if i.owner is OwnerKind.APP and i.desired is Desired.SERVE and not i.evicted]
    releases = releases_of(tx, [i.release_id for i in staying])
    return DrainFacts(
        order=order,
        instances=tuple(instances),
        evicted=evicted_facts(tx, instances),
        requests={i.id: placement_request(tx, i, releases[i.release_id]) for i in staying},
        nodes=tuple(tx.nodes.select()) if staying else (),
        usage=node_usage(tx) if staying else {},
        volumes=volumes_left(tx, node) if order.volumes else (),
    )


def advance(unit: Unit, node_id: str) -> None:
    """Make what is next for a node that is emptied; nothing where it is not any more."""
    node = unit.tx.nodes.get(node_id)
    plan = drain_plan(unit.tx, node) if node else None
    if node is None or node.drain is None or plan is None:
        return
    evict(unit, plan.evict, Eviction.GENTLE)
    evict(unit, plan.stop, Eviction.FORCED)
    send_away(unit, plan.move)
    if plan.done:
        unit.emit("node.drained", node.id, data={"name": node.name})
        unit.tx.nodes.update(replace(node, scheduling=Scheduling.DRAINED, drain=None))
    elif plan.overdue and not node.drain.overdue:
        data = {"name": node.name, "left": str(len(plan.waiting)), "waits": _summary(plan.waiting)}
        unit.emit("node.drain_overdue", node.id, severity="warning", data=data)
        unit.tx.nodes.update(replace(node, drain=replace(node.drain, overdue=True)))


def has_news(node: Node, plan: DrainPlan) -> bool:
    """Whether to advance would change anything."""
    late = plan.overdue and node.drain is not None and not node.drain.overdue
    return bool(plan.evict or plan.stop or plan.move or plan.done or late)


def release_evicted(unit: Unit, node: Node) -> None:
    """Let stay what has not begun to move away from a node."""
    here = instances_on(unit.tx, node.id)
    stay, unneeded = released(here, evicted_facts(unit.tx, here).relatives)
    for instance in filter(None, map(unit.tx.instances.get, stay)):
        unit.tx.instances.update(replace(instance, eviction=Eviction.NONE))
        unit.hint(subjects.app(instance.app_id))
    for instance in filter(None, map(unit.tx.instances.get, unneeded)):
        app = unit.tx.apps.get(instance.app_id)
        if app is not None:
            apply(unit, app, [Stop(instance_id=instance.id, reason="nothing has to move any more")])


def _summary(waiting: Iterable[Waiting]) -> str:
    """The commonest reasons, each with how many wait for it."""
    found = Counter(each.reason for each in waiting)
    return "; ".join(f"{count}: {reason}" for reason, count in found.most_common(TOLD_REASONS))[:1000]
