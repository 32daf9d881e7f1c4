"""Volumes in a backup of the whole platform: chosen, backed up by their nodes as at any other time, and let go once the
platform's backup has them; and, where a platform was made of it, made anew.

Who makes that backup works beside the servers, on their database: what it asks for is begun by their loop. A backup that was
made for this is the operator's, and no quota counts it. But it is the volume's as any other, and who may delete backups of
that may delete it: then the volume is left out, for no tenant may keep the operator from a backup of all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from shellwego.control.backups import add_backup, let_backup_go
from shellwego.control.changes import apply
from shellwego.control.holds import tell
from shellwego.control.replicareports import drop_replica, replicas_of
from shellwego.control.scopes import missing, project_of
from shellwego.control.unit import Caller, Control, Unit
from shellwego.control.volumereports import snapshots_of
from shellwego.control.volumes import refuse_unmade
from shellwego.core.backups import Backup, BackupState
from shellwego.core.changes import Lose
from shellwego.core.errors import ConflictError, InvalidError, UnavailableError
from shellwego.core.volumes import ObservedVolume, Volume, restated
from shellwego.ports.store import Transaction, eq

ALL = "all"
STALLED_S = 600.0
"""After so long without any progress nobody is there to take them."""
_POLL_S = 1.0
_CALLER = Caller("swg backup")
_WHY = "for a backup of the platform"


def chosen(tx: Transaction, names: Collection[str]) -> list[Volume]:
    """The volumes that are meant by ids or names, or all on which something is.

    Raises:
        NotFoundError: there is no such volume.
        InvalidError: several projects have one of this name.
        ConflictError: nothing was ever on it, or is any more.
    """
    if ALL in names:
        return [each for each in tx.volumes.select() if each.made and not (each.deleting or each.lost)]
    found = {volume.id: volume for volume in (_named(tx, name) for name in names)}
    for volume in found.values():
        refuse_unmade(volume)
    return list(found.values())


def _named(tx: Transaction, name: str) -> Volume:
    volume = tx.volumes.get(name)
    found = [volume] if volume else tx.volumes.select(eq("name", name))
    if not found:
        raise missing("volume", name)
    if len(found) > 1:
        told = ", ".join(f"{each.id} of {project_of(tx, each.project_id).name}" for each in found)
        text = f"{len(found)} projects have a volume {name}: {told}"
        raise InvalidError("ambiguous-volume", text, resolution="Give its id.")
    return found[0]


async def back_up(control: Control, names: Collection[str]) -> dict[str, Backup | None]:
    """Have the chosen volumes backed up, and wait for it; where one cannot be, none is kept. By the volume's id; None: what
    was asked for was deleted.

    Raises:
        ConflictError: `backup-failed`, naming the volume and why; as `chosen`.
        UnavailableError: `backup-stalled`, nobody goes on with it.
    """
    asked = {
        backup.id: backup.volume_id for backup in await control.commit(lambda unit: _request(unit, names), _CALLER)
    }
    try:
        taken = await _taken(control, asked)
        await control.commit(lambda unit: _record_use(unit, taken), _CALLER)
        return {**dict.fromkeys(asked.values()), **{backup.volume_id: backup for backup in taken}}
    except BaseException:
        await control.commit(lambda unit: _let_go(unit, asked), _CALLER)
        raise


async def is_there(control: Control, backup: Backup) -> bool:
    """Whether nobody has deleted it."""
    found = await control.read(lambda tx: tx.backups.get(backup.id))
    return found is not None and found.state is BackupState.AVAILABLE


async def let_go(control: Control, backups: Sequence[Backup]) -> None:
    """Those backups are not needed any more."""
    await control.commit(lambda unit: _let_go(unit, [backup.id for backup in backups]), _CALLER)


async def make_anew(control: Control, backups: Mapping[str, str]) -> None:
    """Have volumes (by id) made of their backups (by id), on whatever nodes they are needed: where they were they are no
    more, nor are their snapshots and replicas, and the instances that held them are lost. Who had one of before, and comes
    back, has an older epoch.

    Raises:
        NotFoundError: there is no such volume, or it has no such backup.
        ConflictError: `backup-unavailable`, that was being deleted.
    """

    def work(unit: Unit) -> None:
        for volume_id, backup_id in backups.items():
            _make_anew(unit, volume_id, backup_id)

    await control.commit(work, _CALLER)


def _make_anew(unit: Unit, volume_id: str, backup_id: str) -> None:
    volume, backup = unit.tx.volumes.get(volume_id), unit.tx.backups.get(backup_id)
    if volume is None or backup is None or backup.volume_id != volume.id:
        raise missing("volume", volume_id)
    if backup.state is not BackupState.AVAILABLE:
        raise ConflictError(
            "backup-unavailable",
            f"the volume {volume.name} ({volume.id}) cannot be made anew: its backup is {backup.state.value}",
            resolution="Leave it out: name the others after --volumes.",
        )
    _lose_holder(unit, volume)
    for snapshot in snapshots_of(unit.tx, volume):
        unit.tx.snapshots.delete(snapshot.id)
    for replica in replicas_of(unit.tx, volume.id):
        drop_replica(unit, replica)
    anew = replace(
        unit.tx.volumes.get(volume_id) or volume,
        node_id="",
        made=False,
        source_snapshot_id="",
        source_backup_id=backup.id,
        instance_id="",
        snapshot_id="",
        restore_snapshot_id="",
        move=None,
        promotion=None,
        epoch=volume.epoch + 1,
        observed=ObservedVolume(),
    )
    unit.tx.volumes.update(restated(anew))
    tell(unit, anew, "volume.restored_from_backup", {"backup": backup.id, "volume": volume.id})


def _lose_holder(unit: Unit, volume: Volume) -> None:
    holder = unit.tx.instances.get(volume.instance_id) if volume.instance_id else None
    app = unit.tx.apps.get(holder.app_id) if holder else None
    if holder is not None and holder.live and app is not None:
        reason = f"the platform was restored, and the volume {volume.name} is made anew"
        apply(unit, app, [Lose(instance_id=holder.id, reason=reason)])


def _request(unit: Unit, names: Collection[str]) -> list[Backup]:
    return [add_backup(unit, volume, _WHY) for volume in chosen(unit.tx, names)]


def _let_go(unit: Unit, ids: Iterable[str]) -> None:
    for id_ in ids:
        backup = unit.tx.backups.get(id_)
        volume = unit.tx.volumes.get(backup.volume_id) if backup else None
        if backup is not None and volume is not None:
            let_backup_go(unit, volume, backup)


def _record_use(unit: Unit, backups: Iterable[Backup]) -> None:
    """Say in the audit what the platform's backup gets."""
    for backup in backups:
        project = project_of(unit.tx, backup.project_id)
        unit.audit(
            "backups:use",
            backup.id,
            organization_id=project.organization_id,
            project_id=project.id,
            detail=f"{_WHY}, of {backup.volume_id}",
        )


async def _taken(control: Control, ids: Iterable[str]) -> list[Backup]:
    seen: list[Backup] = []
    since = control.clock.monotonic()
    while True:
        found = await control.read(lambda tx: [backup for id_ in ids if (backup := _look(tx, id_)) is not None])
        waiting = [backup for backup in found if backup.state is not BackupState.AVAILABLE]
        if not waiting:
            return found
        now = control.clock.monotonic()
        if found != seen:
            seen, since = found, now
        elif now - since > STALLED_S:
            raise UnavailableError(
                "backup-stalled",
                f"the volume {waiting[0].volume_id} is not backed up: {waiting[0].reason or waiting[0].state.value}",
                resolution="The platform has to run meanwhile, with the nodes that have the volumes.",
            )
        await control.clock.sleep(_POLL_S)


def _look(tx: Transaction, id_: str) -> Backup | None:
    """None: it was deleted."""
    backup = tx.backups.get(id_)
    if backup is None or backup.state is BackupState.DELETING:
        return None
    if backup.state is BackupState.FAILED:
        told = f"{backup.volume_id}: {backup.reason or backup.state.value}"
        raise ConflictError("backup-failed", f"a volume could not be backed up: {told}", resolution="Try again.")
    return backup
