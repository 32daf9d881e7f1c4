"""What nodes are told of backups, and what is believed of what they say."""

from __future__ import annotations

import re
from dataclasses import replace

from shellwego.control.backups import backups_of, let_backup_go, prune
from shellwego.control.holds import tell
from shellwego.control.unit import Unit
from shellwego.core.assignments import NodeReport
from shellwego.core.backups import (
    RETRY_S,
    Backup,
    BackupOrder,
    BackupPhase,
    BackupState,
    ObservedBackup,
    stale_failures,
)
from shellwego.core.nodes import Node
from shellwego.core.volumes import MAX_BYTES, Volume
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

_MAX_TEXT = 500
_DIGEST = re.compile(r"[0-9a-f]{64}")


def backup_orders(tx: Transaction, node_id: str) -> tuple[BackupOrder, ...]:
    """All backups that a node is to take, or to check."""
    here = eq("node_id", node_id)
    taken = tx.backups.select(here, eq("state", BackupState.RUNNING.value))
    checked = tx.backups.select(here, eq("verifying", True))
    return tuple(_order(tx, backup) for backup in (*taken, *checked))


def _order(tx: Transaction, backup: Backup) -> BackupOrder:
    plain = BackupOrder(backup_id=backup.id, volume_id=backup.volume_id, project_id=backup.project_id)
    if backup.verifying:
        return replace(plain, verify=backup.verifications, digest=backup.digest)
    doubted = any(each.damage for each in tx.backups.select(eq("volume_id", backup.volume_id)))
    return replace(plain, parent_id=backup.parent_id, distrust=doubted, freeze=backup.freeze)


def take_backups(unit: Unit, node: Node, report: NodeReport) -> None:
    """Take what a node says of backups that it was told of; `report` is of its epoch."""
    for id_, seen in report.backups.items():
        backup = unit.tx.backups.get(id_)
        volume = unit.tx.volumes.get(backup.volume_id) if backup else None
        if backup is None or volume is None or backup.node_id != node.id:
            continue
        bounded = replace(seen, done_bytes=_size(seen.done_bytes), stored_bytes=_size(seen.stored_bytes))
        bounded = replace(bounded, reason=seen.reason[:_MAX_TEXT])
        if backup.verifying and seen.verify == backup.verifications:
            _checked(unit, volume, backup, bounded)
        elif backup.state is BackupState.RUNNING and not seen.verify:
            _taken(unit, volume, backup, bounded)


def _checked(unit: Unit, volume: Volume, backup: Backup, seen: ObservedBackup) -> None:
    match seen.phase:
        case BackupPhase.RUNNING:
            if backup.reason != seen.reason:
                unit.tx.backups.update(replace(backup, reason=seen.reason))
        case BackupPhase.FAILED:
            unit.tx.backups.update(replace(backup, verifying=False, reason=seen.reason))
        case BackupPhase.DONE:
            ended = replace(backup, verifying=False, verified_at=unit.now(), damage=seen.reason, reason="")
            unit.tx.backups.update(ended)
            if seen.reason:
                data = {"backup": backup.id, "damage": seen.reason}
                tell(unit, volume, "volume.backup.damaged", data, severity="error")
            else:
                tell(unit, volume, "volume.backup.verified", {"backup": backup.id})


def _taken(unit: Unit, volume: Volume, backup: Backup, seen: ObservedBackup) -> None:
    match seen.phase:
        case BackupPhase.RUNNING:
            now = replace(backup, done_bytes=seen.done_bytes, stored_bytes=seen.stored_bytes, reason=seen.reason)
            if now != backup:
                unit.tx.backups.update(now)
        case BackupPhase.FAILED:
            fail_backup(unit, volume, backup, seen.reason)
        case BackupPhase.DONE if not _DIGEST.fullmatch(seen.digest):
            fail_backup(unit, volume, backup, "its node told no digest")
        case BackupPhase.DONE:
            there = replace(
                backup,
                state=BackupState.AVAILABLE,
                size_bytes=seen.done_bytes or backup.size_bytes,
                done_bytes=seen.done_bytes,
                stored_bytes=seen.stored_bytes,
                digest=seen.digest,
                reason="",
                ended_at=unit.now(),
            )
            unit.tx.backups.update(there)
            tell(unit, volume, "volume.backup.taken", {"backup": backup.id, "stored_bytes": str(seen.stored_bytes)})
            prune(unit, volume)
            unit.hint(subjects.VAULTS)


def fail_backup(unit: Unit, volume: Volume, backup: Backup, reason: str) -> None:
    """Give one up that was to be taken. What was sent of it serves the next one, or is swept; a scheduled one is tried again
    soon."""
    failed = replace(backup, state=BackupState.FAILED, reason=reason, ended_at=unit.now())
    unit.tx.backups.update(failed)
    tell(unit, volume, "volume.backup.failed", {"backup": backup.id, "reason": reason}, severity="warning")
    policy = unit.tx.backup_policies.get(volume.id) if backup.scheduled else None
    if policy is not None:
        unit.tx.backup_policies.update(replace(policy, next_at=min(policy.next_at, unit.now() + RETRY_S)))
    for each in stale_failures(backups_of(unit.tx, volume.id)):
        let_backup_go(unit, volume, each)
    vault = unit.tx.vaults.get(backup.project_id)
    if vault is not None and not vault.garbage:
        unit.tx.vaults.update(replace(vault, garbage=True))
    unit.hint(subjects.VAULTS)


def _size(told: int) -> int:
    return min(max(told, 0), MAX_BYTES)
