"""What an operator changes of nodes: where they are, what they are called by, and whether they belong here at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shellwego.control.changes import apply
from shellwego.control.instances import instances_on
from shellwego.control.nodekeys import retire_keys
from shellwego.control.replicareports import followers, lease_s, lose_replicas, replicas_of
from shellwego.control.unit import Unit
from shellwego.control.volumemoves import give_back, not_arrived
from shellwego.control.volumereports import lose_volumes
from shellwego.core.changes import Lose
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.instances import Phase
from shellwego.core.nodes import Node, NodeHealth, Scheduling, label_faults, place_faults
from shellwego.core.promotion import standby_of
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWish:
    """What is to change; None keeps."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    """By name; None removes the label."""
    region: str | None = None
    zone: str | None = None


def update_node(unit: Unit, node: Node, wish: NodeWish) -> Node:
    """Change labels and place of a node. What runs there stays; what waits for a node is looked at anew.

    Raises:
        InvalidError: a label, a region or a zone cannot be called so.
    """
    labels = {name: value for name, value in {**node.labels, **wish.labels}.items() if value is not None}
    region = node.region if wish.region is None else wish.region
    zone = node.zone if wish.zone is None else wish.zone
    faults = label_faults(labels) + place_faults({"region": region, "zone": zone})
    if faults:
        text = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise InvalidError("bad-node", text, errors=tuple(faults))
    changed = replace(node, labels=labels, region=region, zone=zone)
    if changed == node:
        return node
    told = ", ".join(sorted(wish.labels))[:1000]
    unit.emit("node.changed", node.id, data={"name": node.name, "region": region, "zone": zone, "labels": told})
    wake_waiting(unit)
    return unit.tx.nodes.update(changed)


def wake_waiting(unit: Unit) -> None:
    """A node came or changed: what could not be placed may fit now."""
    for instance in unit.tx.instances.select(eq("phase", Phase.PENDING.value)):
        unit.hint(subjects.app(instance.app_id))


def remove_node(unit: Unit, node: Node, *, force: bool = False) -> None:
    """Forget a node. What was on it is lost, and comes elsewhere, but for volumes; where its agent still lives, that stops
    it once it hears that it was put out. A volume that had not arrived there yet is where it came from again.

    Raises:
        ConflictError: it is neither drained nor down, or volumes live there, and that is not forced; or, forced or not, a
            standby copy is kept elsewhere of one of them, or one is arriving there, and may be in use already.
    """
    if not force and node.scheduling is not Scheduling.DRAINED and node.health is not NodeHealth.DOWN:
        raise ConflictError(
            "node-in-use",
            f"the node {node.name} is {node.health.value} and {node.scheduling.value}",
            resolution="Drain it first; or force it, and all that runs there is lost.",
        )
    _refuse_arrivals(unit.tx, node)
    _refuse_standbys(unit.tx, node)
    if not force:
        _refuse_volumes(unit.tx, node)
    reason = f"node {node.name} was removed"
    lost = lose_instances(unit, node, reason)
    back = give_back(unit, node)
    gone = lose_volumes(unit, node, reason)
    lose_replicas(unit, node)
    data = {"name": node.name, "lost": str(lost), **({"lost_volumes": str(gone)} if gone else {})}
    data |= {"returned_volumes": str(back)} if back else {}
    unit.emit("node.removed", node.id, severity="warning", data=data)
    retire_keys(unit, node.id)
    unit.tx.nodes.delete(node.id)


def _refuse_arrivals(tx: Transaction, node: Node) -> None:
    """A node may have begun a VM with a volume that it has not told of, and another one would begin beside it where the
    volume came from. Of one that is down without a lease to wait for, it is believed that it is gone."""
    names = [volume.name for volume, _ in not_arrived(tx, node) if _may_use(tx, node, volume)]
    if names:
        raise ConflictError(
            "node-takes-volumes-over",
            f"the node {node.name} is {node.health.value}, and may have what was moved there already: {', '.join(names)}",
            resolution="Wait until it told so; or switch it off, and wait until it is down, and leases there are over.",
        )


def _may_use(tx: Transaction, node: Node, volume: Volume) -> bool:
    leased = lease_s(followers(tx, volume.id)) > 0
    return node.health is not NodeHealth.DOWN or (leased and not node.leases_over)


def _refuse_volumes(tx: Transaction, node: Node) -> None:
    volumes, arriving = tx.volumes.count(eq("node_id", node.id)), len(not_arrived(tx, node))
    if not volumes:
        return
    told = [f"{volumes - arriving} volumes live on the node {node.name} and nowhere else"] if volumes > arriving else []
    told += [f"{arriving} did not arrive on the node {node.name}, as far as it told"] if arriving else []
    outcome = ["what lives there is lost"] if volumes > arriving else []
    outcome += ["what did not arrive is where it came from, as it was when it left"] if arriving else []
    raise ConflictError(
        "node-has-volumes",
        ", and ".join(told),
        resolution=f"Delete them first; or force it, and {', and '.join(outcome)}.",
    )


def _refuse_standbys(tx: Transaction, node: Node) -> None:
    """Nothing is given up as lost of which there is a copy."""
    returning = {volume.id for volume, _ in not_arrived(tx, node)}
    for volume in tx.volumes.select(eq("node_id", node.id)):
        if volume.id in returning:
            continue
        standby = standby_of(replicas_of(tx, volume.id))
        if standby is not None and standby.taken_at is not None and not volume.deleting:
            raise ConflictError(
                "node-has-standbys-elsewhere",
                f"a standby copy of the volume {volume.name}, which lives on the node {node.name}, is kept elsewhere",
                resolution="Let it become the volume first: swg volumes promote; or end that: swg volumes replicate --off",
            )


def lose_instances(unit: Unit, node: Node, reason: str) -> int:
    """What ran on a node is lost; each app is looked at again. Returns how many there were."""
    instances = instances_on(unit.tx, node.id)
    for app_id in {instance.app_id for instance in instances}:
        app = unit.tx.apps.get(app_id)
        if app is not None:
            apply(unit, app, [Lose(instance_id=i.id, reason=reason) for i in instances if i.app_id == app_id])
        unit.hint(subjects.app(app_id))
    unit.hint(subjects.assignments(node.id))
    return len(instances)
