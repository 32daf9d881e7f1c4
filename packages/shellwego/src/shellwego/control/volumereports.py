"""What nodes are told of their volumes, and what is believed of what they say: guarded as the reports of instances are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shellwego.control.holds import tell
from shellwego.control.mounts import users
from shellwego.control.replicareports import drop_replica, followers, held_rounds, lease_s, replicas_of
from shellwego.control.sealing import forget as forget_key
from shellwego.control.unit import Unit
from shellwego.core.assignments import NodeReport, SnapshotOrder, VolumeOrder
from shellwego.core.backups import BackupState, going
from shellwego.core.moves import failed as move_failed
from shellwego.core.nodes import Node
from shellwego.core.replicas import ReplicaPurpose, marked
from shellwego.core.volumes import (
    LOST,
    MAX_BYTES,
    ObservedSnapshot,
    ObservedVolume,
    Presence,
    Snapshot,
    SnapshotState,
    Volume,
    VolumeState,
    restated,
    seen,
    snapshot_failed,
    snapshot_seen,
)
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

_MAX_TEXT = 500
_ON_HOST = (SnapshotState.CREATING.value, SnapshotState.AVAILABLE.value, SnapshotState.DELETING.value)
"""States of snapshots of which a node has, or may have, something."""


def volume_orders(tx: Transaction, node_id: str) -> tuple[VolumeOrder, ...]:
    """All volumes that live on a node, with what is to be done about them."""
    return tuple(_order(tx, volume) for volume in tx.volumes.select(eq("node_id", node_id)) if not volume.lost)


def snapshots_of(tx: Transaction, volume: Volume) -> list[Snapshot]:
    """All snapshots of a volume."""
    return tx.snapshots.select(eq("volume_id", volume.id))


def _order(tx: Transaction, volume: Volume) -> VolumeOrder:
    copies = followers(tx, volume.id)
    return VolumeOrder(
        volume_id=volume.id,
        size_bytes=volume.size_bytes,
        encrypted=volume.encrypted,
        present=not volume.deleting,
        made=volume.made,
        source_snapshot_id=volume.source_snapshot_id,
        source_backup_id=volume.source_backup_id,
        restore_snapshot_id=volume.restore_snapshot_id,
        restore=volume.restores,
        snapshots=tuple(
            SnapshotOrder(
                snapshot_id=snapshot.id,
                present=snapshot.state is not SnapshotState.DELETING,
                made=snapshot.state is SnapshotState.AVAILABLE,
                freeze=snapshot.frozen,
            )
            for snapshot in snapshots_of(tx, volume)
            if snapshot.state.value in _ON_HOST
        ),
        replicas=held_rounds(copies),
        lease_s=lease_s(copies),
        closed=volume.closed,
    )


def take_volumes(unit: Unit, node: Node, report: NodeReport) -> None:
    """Take what a node saw of the volumes that live on it; `report` is of its epoch."""
    for volume_id, observed in report.volumes.items():
        volume = unit.tx.volumes.get(volume_id)
        if volume is None or volume.node_id != node.id or volume.lost:
            continue
        before = volume.observed
        if (report.epoch, report.sequence) > (before.epoch, before.sequence):
            now = replace(_bounded(unit.tx, volume, observed), epoch=report.epoch, sequence=report.sequence)
            if replace(now, epoch=before.epoch, sequence=before.sequence) != before:
                _observe(unit, volume, now)
            else:  # noted all the same: else an older one that comes after it would be believed
                unit.tx.volumes.update(replace(volume, observed=now))


def lose_volumes(unit: Unit, node: Node, reason: str) -> int:
    """What lived on a node that is removed is lost. Returns how many there were. Copies that were left behind by a promotion
    stay, for nothing else has what they have now; they go when somebody drops them, or deletes the lost volume."""
    volumes = unit.tx.volumes.select(eq("node_id", node.id))
    for volume in volumes:
        if volume.deleting:
            forget(unit, volume)
        else:
            _lose(unit, node, volume, reason)
    return len(volumes)


def _lose(unit: Unit, node: Node, volume: Volume, reason: str) -> None:
    gone = ObservedVolume(reason=reason, reason_code=LOST, epoch=node.epoch)
    lost = replace(volume, observed=gone, restore_snapshot_id="", snapshot_id="")
    if volume.move is not None and volume.move.active:
        lost = replace(lost, move=move_failed(volume.move, reason, unit.now()))
    copies = replicas_of(unit.tx, volume.id)
    left = [each for each in copies if each.purpose is ReplicaPurpose.LEFT and not each.dropping]
    for replica in copies:
        if replica not in left:
            drop_replica(unit, replica)
    unit.tx.volumes.update(restated(lost))
    data = {"reason": reason, **({"copies_left": str(len(left))} if left else {})}
    tell(unit, lost, "volume.lost", data, severity="error")
    for snapshot in snapshots_of(unit.tx, volume):
        unit.tx.snapshots.update(snapshot_failed(snapshot, reason))


def forget(unit: Unit, volume: Volume) -> None:
    """Remove the row of a volume of which nothing is left, with those of its snapshots. Backups that failed go as others do:
    a node that was cut off may have stored a manifest."""
    for snapshot in snapshots_of(unit.tx, volume):
        unit.tx.snapshots.delete(snapshot.id)
    for backup in unit.tx.backups.select(eq("volume_id", volume.id)):
        if backup.state is BackupState.PENDING:
            unit.tx.backups.delete(backup.id)
        else:
            unit.tx.backups.update(going(backup, unit.now()))
            unit.hint(subjects.VAULTS)
    if unit.tx.backup_policies.get(volume.id) is not None:
        unit.tx.backup_policies.delete(volume.id)
    for replica in replicas_of(unit.tx, volume.id):
        drop_replica(unit, replica)
    destroy_key(unit, volume)
    unit.tx.volumes.delete(volume.id)
    tell(unit, volume, "volume.deleted")


def destroy_key(unit: Unit, volume: Volume) -> Volume:
    """The volume without its key, which is gone for good: nothing that is left of an encrypted one opens any more, wherever
    it lies. To be stored by the caller."""
    if volume.sealed_key is not None:
        forget_key(unit, volume.sealed_key.key_id)
    return replace(volume, sealed_key=None)


def _observe(unit: Unit, volume: Volume, observed: ObservedVolume) -> None:
    if volume.deleting and observed.presence is Presence.GONE:
        forget(unit, volume)
        return
    stored = unit.tx.volumes.update(seen(volume, observed))
    for snapshot in snapshots_of(unit.tx, volume):
        said = observed.snapshots.get(snapshot.id)
        if said is not None:
            _observe_snapshot(unit, stored, snapshot, said)
    _announce(unit, volume, stored)


def _observe_snapshot(unit: Unit, volume: Volume, snapshot: Snapshot, observed: ObservedSnapshot) -> None:
    after = snapshot_seen(snapshot, observed)
    if after is None:
        unit.tx.snapshots.delete(snapshot.id)
        tell(unit, volume, "volume.snapshot.deleted", {"snapshot": snapshot.id})
    elif after != snapshot:
        unit.tx.snapshots.update(after)
        if after.state is SnapshotState.ERROR:
            data = {"snapshot": snapshot.id, "reason": after.reason}
            tell(unit, volume, "volume.snapshot.failed", data, severity="warning")
        elif snapshot.state is not after.state:
            tell(unit, volume, "volume.snapshot.taken", {"snapshot": snapshot.id})


def _announce(unit: Unit, before: Volume, after: Volume) -> None:
    """Tell what came of what was waited for, and have whoever waits for the volume looked at."""
    there = after.observed.presence is Presence.PRESENT
    if after.made and not before.made:
        tell(unit, after, "volume.created", {"node": after.node_id})
    if after.state is VolumeState.ERROR is not before.state:
        tell(unit, after, "volume.failed", {"reason": after.observed.reason}, severity="error")
    if before.restore_snapshot_id and not after.restore_snapshot_id and marked(before.restore_snapshot_id) is None:
        refused = after.observed.restore_reason
        data = {"snapshot": before.restore_snapshot_id, **({"reason": refused} if refused else {})}
        kind = "volume.restore_failed" if refused else "volume.restored"
        tell(unit, after, kind, data, severity="warning" if refused else "info")
    if there and after.observed.size_bytes > before.observed.size_bytes > 0:
        tell(unit, after, "volume.resized", {"size_bytes": str(after.observed.size_bytes)})
    if before.moving:
        unit.hint(subjects.REPLICAS)
    if after.state is not before.state:
        for app in users(unit.tx, after):
            unit.hint(subjects.app(app.id))


def _bounded(tx: Transaction, volume: Volume, observed: ObservedVolume) -> ObservedVolume:
    """The observation within bounds, of the volume's own snapshots."""
    own = {snapshot.id for snapshot in snapshots_of(tx, volume)}
    return replace(
        observed,
        size_bytes=_size(observed.size_bytes),
        used_bytes=_size(observed.used_bytes),
        restored=min(max(observed.restored, 0), volume.restores),
        restore_reason=observed.restore_reason[:_MAX_TEXT],
        reason=observed.reason[:_MAX_TEXT],
        reason_code="" if observed.reason_code == LOST else observed.reason_code[:64],
        snapshots=_snapshots({id_: said for id_, said in observed.snapshots.items() if id_ in own}),
    )


def _snapshots(said: Mapping[str, ObservedSnapshot]) -> dict[str, ObservedSnapshot]:
    return {
        id_: replace(each, used_bytes=_size(each.used_bytes), reason=each.reason[:_MAX_TEXT])
        for id_, each in sorted(said.items())
    }


def _size(told: int) -> int:
    return min(max(told, 0), MAX_BYTES)
