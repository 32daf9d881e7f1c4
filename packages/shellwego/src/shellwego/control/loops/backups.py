"""The backups loop: has those taken that are due, begins what waits, and gives up what can end no more.

Nothing is read or written here but rows; agents carry the data. One begins once the volume is on a node that is there, and
while nobody sweeps the project's vault.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from shellwego.control.backupreports import fail_backup
from shellwego.control.backups import add_backup, backups_of
from shellwego.control.loops.hints import keep_looking
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.unit import Control, Unit
from shellwego.control.vaults import Vaults
from shellwego.core.backups import MAX_BACKUPS, UNDER_WAY, Backup, BackupPolicy, BackupState, count_kept, next_due
from shellwego.core.errors import ShellWeGoError
from shellwego.core.nodes import NodeHealth
from shellwego.core.troubles import Troubles
from shellwego.core.volumes import Presence, Volume
from shellwego.ports.store import Op, Transaction, Where, eq
from shellwego.wire import subjects

LOOK_AGAIN_S = 10.0
BATCH = 100

_log = structlog.get_logger(__name__)


async def run(control: Control, vaults: Vaults, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "backups", holder, lambda fenced: BackupLoop(fenced, vaults).run)


@dataclass(slots=True)
class BackupLoop:
    """One holder's work."""

    control: Control
    vaults: Vaults
    _troubles: Troubles = field(default_factory=Troubles)

    async def run(self) -> None:
        """Look at every hint and on a timer, for ever."""
        await keep_looking(self.control, subjects.BACKUPS, LOOK_AGAIN_S, self.step)

    async def step(self) -> None:
        """Look once."""
        for policy in await self.control.read(_due):
            await self.control.commit(partial(schedule, id_=policy.id))
        for backup in await self.control.read(_beginning):
            await self._begin(backup)
        for backup in await self.control.read(_stranded):
            await self.control.commit(partial(give_up, id_=backup.id))

    async def _begin(self, backup: Backup) -> None:
        now = self.control.clock.monotonic()
        try:
            project = await self.control.read(lambda tx: tx.projects.get(backup.project_id))
            if project is not None:
                await self.vaults.ensure(project)
        except ShellWeGoError as error:
            if trouble := self._troubles.failed("key", error.message, now):
                _log.warning("backups.no_key", backup=backup.id, reason=error.message, **trouble.fields)
            return
        await self.control.commit(partial(begin, id_=backup.id))


def schedule(unit: Unit, id_: str) -> None:
    """Have a backup taken by a volume's policy, if it is due, and say when the next one is. One that cannot be taken now is
    left out."""
    policy = unit.tx.backup_policies.get(id_)
    volume = unit.tx.volumes.get(id_) if policy else None
    if policy is None or policy.next_at > unit.now():
        return
    unit.tx.backup_policies.update(replace(policy, next_at=next_due(policy, unit.now())))
    if volume is None or volume.deleting or volume.lost or not volume.made:
        return
    known = backups_of(unit.tx, volume.id)
    if count_kept(known) < MAX_BACKUPS and not any(each.state in UNDER_WAY for each in known):
        add_backup(unit, volume, scheduled=True)


def begin(unit: Unit, id_: str) -> None:
    """Give a backup that waits to the node of its volume, or say why it waits."""
    backup = unit.tx.backups.get(id_)
    if backup is None or backup.state is not BackupState.PENDING:
        return
    volume = unit.tx.volumes.get(backup.volume_id)
    reason = _obstacle(unit.tx, backup, volume)
    if volume is None or volume.lost:
        if volume is not None:
            fail_backup(unit, volume, backup, "the volume is lost")
    elif reason:
        if reason != backup.reason:
            unit.tx.backups.update(replace(backup, reason=reason))
    else:
        running = replace(
            backup,
            state=BackupState.RUNNING,
            node_id=volume.node_id,
            parent_id=_parent(unit.tx, volume),
            reason="",
        )
        unit.tx.backups.update(running)
        unit.hint(subjects.assignments(volume.node_id))


def give_up(unit: Unit, id_: str) -> None:
    """Give up what a node was to do that is not there any more."""
    backup = unit.tx.backups.get(id_)
    volume = unit.tx.volumes.get(backup.volume_id) if backup else None
    if backup is None or volume is None or not _is_stranded(unit.tx, backup):
        return
    if backup.verifying:
        unit.tx.backups.update(replace(backup, verifying=False, reason="the node that checked it went down"))
    else:
        fail_backup(unit, volume, backup, "the volume's node went down")


def _obstacle(tx: Transaction, backup: Backup, volume: Volume | None) -> str:
    """Why it cannot begin; empty: it can."""
    node = tx.nodes.get(volume.node_id) if volume else None
    if volume is None or node is None or node.health is not NodeHealth.READY:
        return "its node is not there"
    if volume.moving or volume.restore_snapshot_id or volume.observed.presence is not Presence.PRESENT:
        return f"the volume is {volume.state.value}"
    vault = tx.vaults.get(backup.project_id)
    if vault is None:
        return "the project has no key for backups yet"
    return "old backups are being cleared away" if vault.sweeping_until > tx.now() else ""


def _parent(tx: Transaction, volume: Volume) -> str:
    good = [each for each in backups_of(tx, volume.id) if each.good]
    return max(good, key=lambda each: (each.created_at, each.id)).id if good else ""


def _due(tx: Transaction) -> list[BackupPolicy]:
    return tx.backup_policies.select(Where("next_at", Op.LTE, tx.now()), limit=BATCH)


def _beginning(tx: Transaction) -> list[Backup]:
    """Those that wait and may begin, or for another reason than was told. However many wait for a node that is gone, they
    hide none."""
    waiting = tx.backups.select(eq("state", BackupState.PENDING.value))
    return [backup for backup in waiting if _is_news(tx, backup)][:BATCH]


def _is_news(tx: Transaction, backup: Backup) -> bool:
    volume = tx.volumes.get(backup.volume_id)
    reason = _obstacle(tx, backup, volume)
    without_key = tx.vaults.get(backup.project_id) is None
    return not reason or reason != backup.reason or without_key or volume is None or volume.lost


def _stranded(tx: Transaction) -> list[Backup]:
    told = (*tx.backups.select(eq("state", BackupState.RUNNING.value)), *tx.backups.select(eq("verifying", True)))
    return [backup for backup in told if _is_stranded(tx, backup)][:BATCH]


def _is_stranded(tx: Transaction, backup: Backup) -> bool:
    if backup.state is not BackupState.RUNNING and not backup.verifying:
        return False
    node = tx.nodes.get(backup.node_id)
    return node is None or node.health is NodeHealth.DOWN
