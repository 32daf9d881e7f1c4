"""The backups loop: has those taken that are due, begins what waits, and gives up what can end no more.

Nothing is read or written here but rows; agents carry the data. One begins once the volume is on a node that is there, and
while nobody sweeps the project's vault.

A vault is swept only while no backup of it is taken. So where the repository is full, those that wait for room keep it from
coming: they are given up after a while, if there is something to sweep, and none is begun before the sweep had its turn.

However many wait, a look is short: it goes through so many of them, the next look goes on behind them, and projects take
turns. For keys that cannot be had nobody waits but who needs them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from shellwego.control.backupreports import fail_backup
from shellwego.control.backups import add_backup, backups_of
from shellwego.control.loops.hints import keep_looking
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.unit import Control, Unit
from shellwego.control.vaults import Vaults
from shellwego.core.backups import (
    MAX_BACKUPS,
    UNDER_WAY,
    Backup,
    BackupPolicy,
    BackupState,
    Halt,
    count_kept,
    halts,
    in_turn,
    is_hopeless,
    next_due,
)
from shellwego.core.errors import ShellWeGoError, UnavailableError
from shellwego.core.nodes import NodeHealth
from shellwego.core.tenancy import Project
from shellwego.core.troubles import Troubles
from shellwego.core.volumes import Presence, Volume
from shellwego.ports.store import Op, Transaction, Where, eq
from shellwego.wire import subjects

LOOK_AGAIN_S = 10.0
PAGE = 500
"""So many of those that wait are looked at in one look, and a fifth of them begun at most."""
BATCH = 100
KEYS_AT_ONCE = 10
"""For so many projects a key is asked for in one look."""
GIVE_WAY_S = 120.0
"""So long after one failed none is begun where there is something to sweep: the vaults loop looks twice meanwhile."""

_log = structlog.get_logger(__name__)


async def run(control: Control, vaults: Vaults, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "backups", holder, lambda fenced: BackupLoop(fenced, vaults).run)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Some of those that wait."""

    news: list[Backup]
    """They may begin, or do not for another reason than was told."""
    keyless: list[str]
    """Projects that have no key yet."""
    end: str
    """The id after which the next look goes on; empty: from the start."""


@dataclass(slots=True)
class BackupLoop:
    """One holder's work."""

    control: Control
    vaults: Vaults
    _troubles: Troubles = field(default_factory=Troubles)
    _after: str = ""
    _asked: str = ""
    """The last project that a key was asked for."""
    _halts: Mapping[str, Halt] = field(default_factory=dict)

    async def run(self) -> None:
        """Look at every hint and on a timer, for ever."""
        await keep_looking(self.control, subjects.BACKUPS, LOOK_AGAIN_S, self.step)

    async def step(self) -> None:
        """Look once."""
        for policy in await self.control.read(_due):
            await self.control.commit(partial(schedule, id_=policy.id))
        waiting = await self._begin()
        if await self._make_vaults(waiting.keyless):
            await self._begin()
        self._after = waiting.end
        for backup in await self.control.read(_stranded):
            await self.control.commit(partial(give_up, id_=backup.id))
        await self._give_up_hopeless()

    async def _begin(self) -> _Waiting:
        waiting = await self.control.read(partial(_waiting, after=self._after))
        for backup in waiting.news:
            await self.control.commit(partial(begin, id_=backup.id))
        return waiting

    async def _make_vaults(self, project_ids: Collection[str]) -> bool:
        """Have vaults for some of these projects, and for the next ones at the next look; whether there is a new one. Where
        the keeper of keys does not answer, no other is asked for now."""
        last, made = self._asked, False
        for id_ in sorted(project_ids, key=lambda id_: (id_ <= last, id_))[:KEYS_AT_ONCE]:
            self._asked = id_
            try:
                project = await self.control.read(partial(_project, id_=id_))
                if project is not None:
                    await self.vaults.ensure(project)
                    made = True
            except ShellWeGoError as error:
                if trouble := self._troubles.failed("key", error.message, self.control.clock.monotonic()):
                    _log.warning("backups.no_key", project=id_, reason=error.message, **trouble.fields)
                if isinstance(error, UnavailableError):
                    break
        return made

    async def _give_up_hopeless(self) -> None:
        now = self.control.clock.monotonic()
        running = await self.control.read(lambda tx: tx.backups.select(eq("state", BackupState.RUNNING.value)))
        self._halts = known = halts(self._halts, running, now)
        for backup in await self.control.read(partial(_hopeless, running=running, known=known, now=now)):
            await self.control.commit(partial(give_up_hopeless, id_=backup.id, known=known, now=now))


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


def give_up_hopeless(unit: Unit, id_: str, known: Mapping[str, Halt], now: float) -> None:
    """Give up one that keeps from coming what it waits for; its node ends its part once it hears of it."""
    backup = unit.tx.backups.get(id_)
    volume = unit.tx.volumes.get(backup.volume_id) if backup else None
    if backup is not None and volume is not None and _is_hopeless(unit.tx, backup, known, now):
        fail_backup(unit, volume, backup, backup.reason)
        unit.hint(subjects.assignments(backup.node_id))


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
    if vault.sweeping_until > tx.now():
        return "old backups are being cleared away"
    return "old backups are to be cleared away first" if vault.garbage and _gives_way(tx, vault.id) else ""


def _gives_way(tx: Transaction, project_id: str) -> bool:
    """Whether a sweep goes first: a backup that is taken is held up, or one failed just now. Else those that begin one after
    the other would never let a full repository be swept."""
    mine = eq("project_id", project_id)
    if any(each.reason for each in tx.backups.select(mine, eq("state", BackupState.RUNNING.value))):
        return True
    failed = tx.backups.select(mine, eq("state", BackupState.FAILED.value))
    return any(each.ended_at is not None and each.ended_at > tx.now() - GIVE_WAY_S for each in failed)


def _parent(tx: Transaction, volume: Volume) -> str:
    good = [each for each in backups_of(tx, volume.id) if each.good]
    return max(good, key=lambda each: (each.created_at, each.id)).id if good else ""


def _due(tx: Transaction) -> list[BackupPolicy]:
    return tx.backup_policies.select(Where("next_at", Op.LTE, tx.now()), limit=BATCH)


def _project(tx: Transaction, id_: str) -> Project | None:
    return tx.projects.get(id_)


def _waiting(tx: Transaction, after: str) -> _Waiting:
    pending = eq("state", BackupState.PENDING.value)
    page = tx.backups.select(pending, limit=PAGE, after=(after, after) if after else None)
    news = in_turn(backup for backup in page if _is_news(tx, backup))
    keyless = {backup.project_id for backup in page if tx.vaults.get(backup.project_id) is None}
    return _Waiting(news[:BATCH], sorted(keyless), page[-1].id if len(page) == PAGE else "")


def _is_news(tx: Transaction, backup: Backup) -> bool:
    volume = tx.volumes.get(backup.volume_id)
    reason = _obstacle(tx, backup, volume)
    return volume is not None and (not reason or reason != backup.reason or volume.lost)


def _hopeless(tx: Transaction, running: Iterable[Backup], known: Mapping[str, Halt], now: float) -> list[Backup]:
    return [backup for backup in running if _is_hopeless(tx, backup, known, now)]


def _is_hopeless(tx: Transaction, backup: Backup, known: Mapping[str, Halt], now: float) -> bool:
    vault, halt = tx.vaults.get(backup.project_id), known.get(backup.id)
    return vault is not None and halt is not None and is_hopeless(backup, vault, halt, now)


def _stranded(tx: Transaction) -> list[Backup]:
    told = (*tx.backups.select(eq("state", BackupState.RUNNING.value)), *tx.backups.select(eq("verifying", True)))
    return [backup for backup in told if _is_stranded(tx, backup)][:BATCH]


def _is_stranded(tx: Transaction, backup: Backup) -> bool:
    if backup.state is not BackupState.RUNNING and not backup.verifying:
        return False
    node = tx.nodes.get(backup.node_id)
    return node is None or node.health is NodeHealth.DOWN
