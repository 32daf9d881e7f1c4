"""What an answer shows of a volume beyond its own row: who has it, where it goes, what copies it has."""

from __future__ import annotations

from shellwego.api.rest.answers import body_answer
from shellwego.api.rest.schemas.volumes import (
    CopyView,
    PromotionView,
    SnapshotView,
    VolumeDetail,
    VolumeMoveView,
    VolumeView,
    copy_view,
    move_view,
    promotion_view,
    snapshot_view,
    volume_view,
)
from shellwego.control import standbys
from shellwego.control.idempotency import Answer
from shellwego.control.mounts import users
from shellwego.control.replicareports import replicas_of
from shellwego.core.nodes import NodeHealth
from shellwego.core.promotion import standby_of
from shellwego.core.replicas import Replica
from shellwego.core.volumes import Snapshot, Volume
from shellwego.ports.store import Transaction


def show_volume(tx: Transaction, volume: Volume) -> VolumeView:
    """A volume as it stands in a list, with why it is not ready."""
    node = tx.nodes.get(volume.node_id) if volume.node_id else None
    seen = volume.observed
    reason = seen.reason or seen.restore_reason
    if volume.moving and volume.move is not None:
        reason = volume.move.reason or reason
    facts = standbys.facts_of(tx, volume)
    if node is not None and node.health is NodeHealth.DOWN:
        waits = standbys.waits_for(facts)
        rest = (waits or "its standby copy can take over") if facts.standby else "and its data is nowhere else"
        reason = f"its node {node.name} is down, {rest}"
    standby = None if facts.standby is None else _copy(tx, facts.standby)
    return volume_view(volume, node=node.name if node else None, standby=standby, reason=reason)


def _copy(tx: Transaction, replica: Replica) -> CopyView:
    return copy_view(replica, node=_node_name(tx, replica.node_id) if replica.node_id else None, now=tx.now())


def _node_name(tx: Transaction, node_id: str) -> str:
    node = tx.nodes.get(node_id)
    return node.name if node else node_id


def show_volume_detail(tx: Transaction, volume: Volume) -> VolumeDetail:
    """A volume with who needs it, where it goes and what copies it has."""
    mounted_by = sorted(app.name for app in users(tx, volume))
    copies = sorted(replicas_of(tx, volume.id), key=lambda each: each.id)
    return VolumeDetail(
        mounted_by=mounted_by,
        move=_move(tx, volume),
        copies=[_copy(tx, replica) for replica in copies],
        promotion=_promotion(tx, volume),
        **show_volume(tx, volume).model_dump(),
    )


def _promotion(tx: Transaction, volume: Volume) -> PromotionView | None:
    told = volume.promotion
    if told is None:
        return None
    return promotion_view(told, source=_node_name(tx, told.from_node_id), target=_node_name(tx, told.to_node_id))


def _move(tx: Transaction, volume: Volume) -> VolumeMoveView | None:
    move = volume.move
    if move is None:
        return None
    replica = tx.replicas.get(move.replica_id) if move.active else None
    source, target = (tx.nodes.get(id_) for id_ in (move.source_node_id, move.target_node_id))
    return move_view(
        move,
        source=source.name if source else move.source_node_id,
        target=target.name if target else move.target_node_id,
        round_bytes=replica.observed.bytes if replica else 0,
    )


def standby_copy(tx: Transaction, volume: Volume) -> Replica | None:
    """The copy that takes over from the volume, where it has one."""
    return standby_of(replicas_of(tx, volume.id))


def show_snapshot(tx: Transaction, volume: Volume, snapshot: Snapshot) -> SnapshotView:
    """A snapshot, and whether the volume's standby copy has it."""
    return snapshot_view(snapshot, standby_copy(tx, volume))


def volume_answer(tx: Transaction, volume: Volume, status: int = 200) -> Answer:
    """A volume as it is told."""
    return body_answer(show_volume_detail(tx, volume), status, volume.version)
