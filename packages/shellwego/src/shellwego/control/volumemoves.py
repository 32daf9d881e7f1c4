"""Volumes that go to another node: asked for, brought forward, given up (`core.moves`).

Each step is one transaction on the rows of volume and replica, so whoever takes over goes on where the last one was. In the
one that lets the two change places the volume is nobody's; before it the old node is the one that has the data, after it the
new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shellwego.control.config import refuse
from shellwego.control.evictions import evict
from shellwego.control.facts import node_usage, placement_request, releases_of
from shellwego.control.holds import tell
from shellwego.control.mounts import users
from shellwego.control.replicareports import drop_replica, replicas_of
from shellwego.control.unit import Unit
from shellwego.control.volumereports import snapshots_of
from shellwego.control.volumes import refuse_busy, refuse_unmade
from shellwego.core.apps import MIB, App, AppConfig, Mount, wanted_counts
from shellwego.core.backups import BackupState
from shellwego.core.errors import ConflictError, FieldError
from shellwego.core.instances import SERVING, Desired, Eviction, Instance
from shellwego.core.moves import (
    BEFORE_SWITCH,
    MoveFacts,
    MovePlan,
    MoveStage,
    Step,
    VolumeMove,
    cancelled,
    failed,
    plan_move,
)
from shellwego.core.nodes import Node, NodeHealth, Scheduling
from shellwego.core.placement import NOTHING, objection, room_on
from shellwego.core.replicas import FOREIGN, ObservedReplica, Replica, ReplicaPurpose, asked, marker, restated
from shellwego.core.volumes import ObservedVolume, Presence, Volume
from shellwego.core.volumes import restated as volume_restated
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

_TOLD = {
    MoveStage.STOPPING: "volume.move.stopping",
    MoveStage.COPYING: "volume.move.delayed",
    MoveStage.ARRIVING: "volume.move.switched",
    MoveStage.DONE: "volume.moved",
    MoveStage.FAILED: "volume.move.failed",
    MoveStage.CANCELLED: "volume.move.cancelled",
}
"""Stages whose beginning is an event."""
_WARNED = frozenset({MoveStage.COPYING, MoveStage.FAILED})


def move_volume(unit: Unit, volume: Volume, node: Node) -> Volume:
    """Have a volume go to another node; the app that mounts it follows, with a short stop.

    Raises:
        InvalidError: the node cannot have the volume, or the app cannot follow.
        ConflictError: the volume is busy, has nothing on it, or is there already.
    """
    refuse_immovable(unit.tx, volume)
    if node.id == volume.node_id:
        raise ConflictError("already-there", f"the volume {volume.name} is on the node {node.name} already")
    fault = unfit(unit.tx, volume, node)
    refuse(
        "cannot-be-moved",
        (FieldError("node", "does-not-fit", f"the node {node.name} {fault}"),) if fault else (),
        resolution="Name another node: swg nodes ls",
    )
    return begin_move(unit, volume, node)


def begin_move(unit: Unit, volume: Volume, node: Node) -> Volume:
    """Have a volume go to a node that can have it."""
    now = unit.now()
    replica = unit.tx.replicas.insert(
        Replica(
            id=unit.new_id("rep"),
            volume_id=volume.id,
            project_id=volume.project_id,
            node_id=node.id,
            purpose=ReplicaPurpose.MOVE,
            size_bytes=volume.size_bytes,
            asked_at=now,
            created_at=now,
            created_by=unit.caller.actor,
        )
    )
    refused_by = volume.move.refused_by if volume.move else ()
    move = VolumeMove(
        replica_id=replica.id,
        source_node_id=volume.node_id,
        target_node_id=node.id,
        began_at=now,
        stage_at=now,
        refused_by=tuple(each for each in refused_by if each != node.id),
    )
    moving = unit.tx.volumes.update(volume_restated(replace(volume, move=move)))
    tell(unit, moving, "volume.moving", {"from": volume.node_id, "to": node.id})
    _hint(unit, moving)
    return moving


def cancel_move(unit: Unit, volume: Volume) -> Volume:
    """Give a move up: the volume stays where it is, and the app goes on there.

    Raises:
        ConflictError: it does not move, or is on the other node already.
    """
    move = volume.move
    if move is None or move.stage not in BEFORE_SWITCH:
        raise ConflictError(
            "not-moving",
            f"the volume {volume.name} does not move, or has arrived",
            resolution="swg volumes show tells where it is.",
        )
    replica = unit.tx.replicas.get(move.replica_id)
    if replica is not None:
        drop_replica(unit, replica)
    return _note(unit, volume, cancelled(move, unit.now()))


def not_arrived(tx: Transaction, node: Node) -> list[tuple[Volume, Replica]]:
    """Volumes that were moved to a node which has not told of them yet, each with its copy on the node that it came from:
    that is whole, and as whoever had the volume left it."""
    arriving = (
        volume
        for volume in tx.volumes.select(eq("node_id", node.id))
        if volume.move is not None and volume.move.stage is MoveStage.ARRIVING
    )
    found = [(volume, tx.replicas.get(volume.move.replica_id)) for volume in arriving if volume.move is not None]
    return [(volume, copy) for volume, copy in found if copy is not None and _is_there(tx, copy)]


def _is_there(tx: Transaction, copy: Replica) -> bool:
    seen = copy.observed
    whole = seen.presence is Presence.PRESENT and seen.reason_code != FOREIGN
    return whole and not copy.dropping and tx.nodes.get(copy.node_id) is not None


def give_back(unit: Unit, node: Node) -> int:
    """What was moved to a node that is removed before it told of it is the volume again where it came from. Returns how many
    there were. What has ended there is to be told before."""
    returning = not_arrived(unit.tx, node)
    for volume, copy in returning:
        _give_back(unit, volume, copy)
    return len(returning)


def _give_back(unit: Unit, volume: Volume, copy: Replica) -> None:
    """The copy's row goes, and its node, which has it as the volume from now on, is never told to destroy it. It is put back
    to the marker of the last round before anybody has it: that node may be halfway in making its copy again what it was."""
    move = volume.move
    if move is None:
        raise AssertionError("nothing to give back")
    unit.tx.replicas.delete(copy.id)
    again = replace(
        volume,
        node_id=copy.node_id,
        instance_id="",
        observed=ObservedVolume(presence=Presence.PRESENT),
        restore_snapshot_id=marker(copy.id, copy.round),
        restores=volume.restores + 1,
    )
    reason = "the node it was to go to was removed before it had taken it over: it is on its old node again"
    _note(unit, again, failed(move, reason, unit.now()))


def unfit(tx: Transaction, volume: Volume, node: Node) -> str:
    """Why a node cannot have the volume, or the app that has it now could not follow; empty: all is well."""
    return next(node_faults(tx, volume, node), "") or _unfit_for_holder(tx, volume, node)


def node_faults(tx: Transaction, volume: Volume, node: Node) -> Iterator[str]:
    """What speaks against a node, whoever has the volume."""
    if node.health is not NodeHealth.READY:
        yield f"is {node.health.value}"
    if node.scheduling is not Scheduling.OPEN:
        yield f"is {node.scheduling.value}"
    source = tx.nodes.get(volume.node_id)
    if not node.facts.replicas or source is None or not source.facts.replicas:
        yield "or the volume's own one takes no part in moves of volumes: it keeps none, or its version is older"
    able = [each for each in node.facts.backends if each.status == "ready" and each.volumes]
    if not able:
        yield "keeps no volumes"
    if volume.encrypted and not any(each.encryption for each in able):
        yield "encrypts no volumes"
    if any(each.node_id == node.id for each in replicas_of(tx, volume.id)):
        yield "has a copy of it that is kept, or still being deleted"
    free = room_on(node, node_usage(tx, node.id).get(node.id, NOTHING)).disk_bytes
    if volume.size_bytes > free:
        yield f"has room for {max(free, 0) // MIB} MiB, and the volume has {volume.size_bytes // MIB}"


def _unfit_for_holder(tx: Transaction, volume: Volume, node: Node) -> str:
    """Why whoever has the volume could not be on a node."""
    holder = _holder(tx, volume)
    release = releases_of(tx, [holder.release_id]).get(holder.release_id) if holder else None
    if holder is None or release is None:
        return ""
    request = replace(placement_request(tx, holder, release), home=None)
    found = objection(request, node, node_usage(tx, node.id).get(node.id, NOTHING), choice=False)
    if found is None:
        return ""
    return found.one + (found.detail(found.best) if found.detail else "")


def refuse_immovable(tx: Transaction, volume: Volume) -> None:
    """Raise `ConflictError` for a volume that cannot go to any node now: there is nothing of it, something is done to it, or
    what needs it where it is would be left behind."""
    refuse_unmade(volume)
    refuse_busy(volume)
    if volume.move is not None and volume.move.active:
        raise ConflictError(
            "volume-busy",
            f"the copy of {volume.name} that its last move left behind is being deleted",
            resolution="Wait.",
        )
    snapshots = {snapshot.id for snapshot in snapshots_of(tx, volume)}
    beside = tx.volumes.select(eq("node_id", volume.node_id)) if snapshots else []
    clones = sorted(each.name for each in beside if each.source_snapshot_id in snapshots)
    if clones:
        raise ConflictError(
            "volume-has-clones",
            f"{', '.join(clones)} began as a copy of its snapshots, and needs them where they are",
            resolution="Delete those volumes first.",
        )
    taken = tx.backups.select(eq("volume_id", volume.id))
    if any(backup.state is BackupState.RUNNING for backup in taken):
        raise ConflictError("volume-busy", f"a backup of {volume.name} is being taken", resolution="Wait.")
    if beside_it := _companions(tx, volume):
        raise ConflictError(
            "volume-has-companions",
            f"a process mounts {volume.name} together with {', '.join(beside_it)}, and all of them are on one node",
            resolution="Detach the others first, move each, and attach them again.",
        )


def _companions(tx: Transaction, volume: Volume) -> list[str]:
    """Names of the other volumes that a process mounts beside it."""
    beside = set()
    for _, config, mount in _mounts(tx, volume):
        beside |= {each.source for each in config.mounts_of(mount.process)}
    return sorted(beside - {volume.name})


def _mounts(tx: Transaction, volume: Volume) -> Iterator[tuple[App, AppConfig, Mount]]:
    """Where apps mount the volume: by their configs, and by the releases that they run."""
    for app in users(tx, volume):
        release = tx.releases.get(app.release_id) if app.release_id else None
        for config in (app.config, *((release.config,) if release else ())):
            for mount in config.mounts:
                if volume.id == mount.volume_id or (not mount.volume_id and volume.name == mount.source):
                    yield app, config, mount


def advance_move(unit: Unit, volume_id: str) -> None:
    """Take the next step of a volume's move, if there is one."""
    volume = unit.tx.volumes.get(volume_id)
    plan = next_step(unit.tx, volume) if volume else None
    if volume is None or volume.move is None or plan is None or not _is_news(volume.move, plan):
        return
    replica = unit.tx.replicas.get(plan.move.replica_id)
    if plan.step is Step.STOP:
        evict(unit, filter(None, [volume.instance_id]), Eviction.FORCED)
    elif plan.step is Step.ROUND and replica is not None:
        unit.tx.replicas.update(asked(replica, unit.now()))
    elif plan.step is Step.SWITCH and replica is not None:
        volume = _switched(unit, volume, replica)
    elif plan.step is Step.DROP and replica is not None:
        drop_replica(unit, replica)
    left = unit.tx.replicas.get(plan.move.replica_id)
    if left is not None and not plan.move.active and left.observed.presence is Presence.GONE:
        unit.tx.replicas.delete(left.id)
    _note(unit, volume, plan.move)


def next_step(tx: Transaction, volume: Volume) -> MovePlan | None:
    """What is next for a volume's move; None: there is none under way."""
    if volume.move is None or not volume.move.active:
        return None
    return plan_move(_facts(tx, volume, volume.move), tx.now())


def has_news(tx: Transaction, volume: Volume) -> bool:
    """Whether to advance would change anything."""
    plan = next_step(tx, volume)
    return plan is not None and volume.move is not None and _is_news(volume.move, plan)


def _is_news(move: VolumeMove, plan: MovePlan) -> bool:
    return plan.step is not Step.WAIT or plan.move != move


def _facts(tx: Transaction, volume: Volume, move: VolumeMove) -> MoveFacts:
    replica = tx.replicas.get(move.replica_id)
    source, target = tx.nodes.get(move.source_node_id), tx.nodes.get(move.target_node_id)
    holder = _holder(tx, volume)
    ready_to_stop = move.stage is MoveStage.COPYING and replica is not None and replica.up
    obstacle = _unfit_for_holder(tx, volume, target) if ready_to_stop and target else ""
    return MoveFacts(
        move=move,
        source_ready=_is_ready(source),
        target_ready=_is_ready(target),
        target_exists=target is not None and replica is not None,
        round=replica.round if replica else 0,
        round_held=replica.observed.round if replica else 0,
        round_bytes=replica.observed.bytes if replica else 0,
        trouble=replica.observed.reason if replica else "",
        foreign=replica is not None and replica.observed.reason_code == FOREIGN,
        held=holder is not None,
        leaving=holder is not None and _leaves(holder),
        obstacle=f"the app could not follow: {target.name} {obstacle}" if obstacle and target else "",
        arrived=volume.observed.presence is Presence.PRESENT,
        cleared=replica is None or replica.observed.presence is Presence.GONE,
        returned=_returned(tx, volume, holder),
    )


def _is_ready(node: Node | None) -> bool:
    return node is not None and node.health is NodeHealth.READY


def _holder(tx: Transaction, volume: Volume) -> Instance | None:
    holder = tx.instances.get(volume.instance_id) if volume.instance_id else None
    return holder if holder is not None and holder.live else None


def _leaves(holder: Instance) -> bool:
    return holder.desired is not Desired.SERVE or holder.eviction is Eviction.FORCED


def _returned(tx: Transaction, volume: Volume, holder: Instance | None) -> bool:
    """Whether who mounts the volume serves, or nobody is to."""
    if holder is not None:
        return holder.phase in SERVING
    return not any(wanted_counts(app, config)[mount.process] for app, config, mount in _mounts(tx, volume))


def _switched(unit: Unit, volume: Volume, replica: Replica) -> Volume:
    """Let volume and replica change places: what was the volume is the copy, of the same round."""
    left = ObservedReplica(
        presence=Presence.PRESENT,
        round=replica.round,
        snapshot_id=marker(replica.id, replica.round),
        bytes=replica.observed.bytes,
        digest=replica.observed.digest,
    )
    unit.tx.replicas.update(restated(replace(replica, node_id=volume.node_id, observed=left), unit.now()))
    unit.hint(subjects.assignments(volume.node_id))
    return replace(volume, node_id=replica.node_id, instance_id="", observed=ObservedVolume())


def _note(unit: Unit, volume: Volume, move: VolumeMove) -> Volume:
    """Store a move as it is now, with whatever else is new of the volume, and tell of a stage that begins."""
    before = volume.move
    stored = unit.tx.volumes.update(volume_restated(replace(volume, move=move)))
    if before is not None and before.stage is not move.stage:
        _announce(unit, stored, move)
        _hint(unit, stored)
    return stored


def _announce(unit: Unit, volume: Volume, move: VolumeMove) -> None:
    if move.stage not in _TOLD:
        return
    data = {"from": move.source_node_id, "to": move.target_node_id}
    if move.reason:
        data["reason"] = move.reason
    if move.stage is MoveStage.DONE:
        stopped = move.stopped_s
        data |= {"rounds": str(move.rounds), "bytes": str(move.sent_bytes)}
        data |= {} if stopped is None else {"stopped_s": f"{stopped:.1f}"}
    severity = "warning" if move.stage in _WARNED else "info"
    tell(unit, volume, _TOLD[move.stage], data, severity=severity)


def _hint(unit: Unit, volume: Volume) -> None:
    """Have everybody look who has a part in a move."""
    if volume.move is not None:
        unit.hint(subjects.assignments(volume.move.source_node_id))
        unit.hint(subjects.assignments(volume.move.target_node_id))
    for app in users(unit.tx, volume):
        unit.hint(subjects.app(app.id))
    unit.hint(subjects.REPLICAS)
