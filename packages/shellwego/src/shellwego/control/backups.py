"""Backups of volumes as their owners handle them: asked for, checked, made volumes of, let go; or all by a policy.

These use cases say what is wanted. The backups loop has it begun, the node's agent does it and tells (`backupreports`), and
the vaults loop removes what is to go from the repository.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.config import refuse
from shellwego.control.holds import tell
from shellwego.control.quotas import charge
from shellwego.control.scopes import missing, project_of
from shellwego.control.sealing import Sealing
from shellwego.control.unit import Unit
from shellwego.control.volumes import VolumeWish, create_volume, refuse_unmade
from shellwego.core.backups import (
    MAX_BACKUPS,
    UNDER_WAY,
    Backup,
    BackupPolicy,
    BackupState,
    count_kept,
    going,
    policy_faults,
    superseded,
)
from shellwego.core.errors import ConflictError, FieldError, QuotaError
from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.tenancy import Project
from shellwego.core.volumes import MAX_DESCRIPTION, Volume
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWish:
    """As in `BackupPolicy`."""

    every_s: int
    daily: int
    weekly: int
    monthly: int


def require_repository(there: bool) -> None:
    """Refuse what needs a repository where the operator gave none."""
    if not there:
        raise no_repository()


def no_repository() -> ConflictError:
    """The operator gave none."""
    return ConflictError(
        "no-repository",
        "this platform has nowhere to put backups",
        resolution="Its operator has to set url in the table [backups] of the configuration, and restart it.",
    )


def request_backup(unit: Unit, project: Project, volume: Volume, description: str = "", *, freeze: bool) -> Backup:
    """Have a backup taken of what the volume holds.

    Raises:
        InvalidError: the description is too long.
        ConflictError: nothing was ever on it, or one is being taken.
        QuotaError: it, the project or its organization has as many as it may.
    """
    if len(description) > MAX_DESCRIPTION or "\0" in description:
        text = f"at most {MAX_DESCRIPTION} characters, and no NUL"
        refuse("backup-refused", (FieldError("description", "too-large", text),))
    refuse_unmade(volume)
    backups = backups_of(unit.tx, volume.id)
    if any(each.state in UNDER_WAY for each in backups):
        raise ConflictError(
            "backup-under-way", f"a backup of the volume {volume.name} is being taken", resolution="Wait until it is."
        )
    if count_kept(backups) >= MAX_BACKUPS:
        raise QuotaError("too-many-backups", f"a volume has at most {MAX_BACKUPS} backups", resolution="Delete some.")
    charge(unit, project, {"backups": 1})
    return add_backup(unit, volume, description, freeze=freeze)


def add_backup(
    unit: Unit, volume: Volume, description: str = "", *, freeze: bool = False, scheduled: bool = False
) -> Backup:
    """Store one that is known to be possible."""
    backup = unit.tx.backups.insert(
        Backup(
            id=unit.new_id("bak"),
            volume_id=volume.id,
            project_id=volume.project_id,
            description=description,
            scheduled=scheduled,
            freeze=freeze,
            size_bytes=volume.size_bytes,
            created_at=unit.now(),
            created_by=unit.caller.actor,
        )
    )
    tell(unit, volume, "volume.backup.requested", {"backup": backup.id})
    unit.hint(subjects.BACKUPS)
    return backup


def backups_of(tx: Transaction, volume_id: str) -> list[Backup]:
    """All backups of a volume."""
    return tx.backups.select(eq("volume_id", volume_id))


def find_backup(tx: Transaction, volume: Volume, id_: str) -> Backup:
    """A backup of this volume; raises `NotFoundError`."""
    backup = tx.backups.get(id_)
    if backup is None or backup.volume_id != volume.id:
        raise missing("backup", id_)
    return backup


def delete_backup(unit: Unit, volume: Volume, backup: Backup) -> None:
    """Let a backup go, also one that is being taken.

    Raises:
        ConflictError: a volume is being made of it.
    """
    made = [each.name for each in _being_made_of(unit.tx, backup)]
    if made:
        raise ConflictError(
            "backup-in-use", f"the volume {', '.join(sorted(made))} is made of it", resolution="Wait until it is."
        )
    let_backup_go(unit, volume, backup)


def let_backup_go(unit: Unit, volume: Volume, backup: Backup) -> None:
    """Remove a backup of which nothing is in the repository, or have the vaults loop remove it."""
    if backup.state is BackupState.DELETING:
        return
    tell(unit, volume, "volume.backup.deleting", {"backup": backup.id})
    if backup.state is BackupState.PENDING:
        unit.tx.backups.delete(backup.id)
        return
    unit.tx.backups.update(going(backup, unit.now()))
    unit.hint(subjects.VAULTS)
    if backup.state is BackupState.RUNNING or backup.verifying:
        unit.hint(subjects.assignments(backup.node_id))


def verify_backup(unit: Unit, volume: Volume, backup: Backup) -> Backup:
    """Have a backup read back and checked, on the volume's node or, where that is not there, on another.

    Raises:
        ConflictError: there is none yet, it is being checked, or no node is there.
    """
    _refuse_unavailable(backup)
    if backup.verifying:
        return backup
    node = _node_for(unit.tx, volume)
    if node is None:
        raise ConflictError("no-node", "no node is there that could check it", resolution="Try again later.")
    tell(unit, volume, "volume.backup.verifying", {"backup": backup.id})
    unit.hint(subjects.assignments(node.id))
    return unit.tx.backups.update(
        replace(backup, verifying=True, verifications=backup.verifications + 1, node_id=node.id, reason="")
    )


def restore_backup(unit: Unit, volume: Volume, backup: Backup, name: str, key: Sealing | None) -> Volume:
    """Make a volume of a backup. It lives nowhere before something mounts it, and then on whatever node that is. What is in
    the backup of an encrypted volume is its ciphertext: so `key` is that of the volume, sealed for the new one.

    Raises:
        ConflictError: the backup is not there or is damaged, or the project has a volume of this name.
        InvalidError, QuotaError: as `create_volume`.
    """
    _refuse_unavailable(backup)
    if backup.damage:
        raise ConflictError("backup-damaged", backup.damage, resolution="Restore another backup of the volume.")
    project = project_of(unit.tx, volume.project_id)
    wish = VolumeWish(name=name, size_bytes=backup.size_bytes, named_in="to")
    made = unit.tx.volumes.update(replace(create_volume(unit, project, wish, key), source_backup_id=backup.id))
    tell(unit, made, "volume.restored_from_backup", {"backup": backup.id, "volume": volume.id})
    return made


def set_policy(unit: Unit, volume: Volume, wish: PolicyWish) -> BackupPolicy:
    """Have the volume backed up by itself from now on, and keep what the policy says.

    Raises:
        InvalidError: a number that cannot be.
    """
    known = unit.tx.backup_policies.get(volume.id)
    now = unit.now()
    policy = BackupPolicy(
        id=volume.id,
        project_id=volume.project_id,
        every_s=wish.every_s,
        daily=wish.daily,
        weekly=wish.weekly,
        monthly=wish.monthly,
        next_at=min(known.next_at, now + wish.every_s) if known else now,
        created_at=known.created_at if known else now,
        version=known.version if known else 1,
    )
    refuse("policy-refused", policy_faults(policy))
    if policy == known:
        return known
    stored = unit.tx.backup_policies.update(policy) if known else unit.tx.backup_policies.insert(policy)
    told = {name: str(getattr(wish, name)) for name in ("every_s", "daily", "weekly", "monthly")}
    tell(unit, volume, "volume.backup.policy", told)
    unit.hint(subjects.BACKUPS)
    prune(unit, volume)
    return stored


def drop_policy(unit: Unit, volume: Volume) -> None:
    """Back the volume up by itself no more; what there is stays."""
    if unit.tx.backup_policies.get(volume.id) is not None:
        unit.tx.backup_policies.delete(volume.id)
        tell(unit, volume, "volume.backup.policy", {"every_s": "never"})


def prune(unit: Unit, volume: Volume) -> None:
    """Let go what the volume's policy does not keep."""
    policy = unit.tx.backup_policies.get(volume.id)
    if policy is None:
        return
    for backup in superseded(policy, backups_of(unit.tx, volume.id)):
        if not _being_made_of(unit.tx, backup):
            let_backup_go(unit, volume, backup)


def _being_made_of(tx: Transaction, backup: Backup) -> list[Volume]:
    volumes = tx.volumes.select(eq("project_id", backup.project_id))
    return [each for each in volumes if each.source_backup_id == backup.id and not (each.made or each.deleting)]


def _refuse_unavailable(backup: Backup) -> None:
    if backup.state is not BackupState.AVAILABLE:
        raise ConflictError("backup-not-available", f"the backup {backup.id} is {backup.state.value}")


def _node_for(tx: Transaction, volume: Volume) -> Node | None:
    ready = tx.nodes.select(eq("health", NodeHealth.READY.value))
    return min(ready, key=lambda node: (node.id != volume.node_id, node.id), default=None)
