"""The vaults loop: removes from the repository the backups that are to go, and then the chunks that no backup needs.

A sweep marks, then removes. What it marks are the chunks of every manifest that the repository has, whether the database
knows of it or not: a platform that was put back to an older state of its own destroys nothing that it does not know.

Where a project was deleted, and its key with it, nothing there can be read by anybody: all of it goes, known or not.

While a vault is swept no backup of it is begun, and a sweep begins only where none is running: a backup relies on chunks
that it finds. That is a lease in the vault's row, by the store's clock. Who has it counts the time by himself from before
he asked for it, and stops well before its end; no call to the store takes as long as what is left then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from shellwego.control.holds import tell
from shellwego.control.loops.hints import keep_looking
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.tries import Tries
from shellwego.control.unit import Control, Unit
from shellwego.control.vaults import Vaults
from shellwego.core.backups import Backup, BackupState, Vault, may_be_removed
from shellwego.core.chunks import BrokenError, VaultCipher, chunks_prefix, manifest_path, manifests_prefix
from shellwego.core.errors import ConflictError, NotFoundError
from shellwego.ports.objects import Objects
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

LOOK_AGAIN_S = 60.0
SWEEP_TERM_S = 900.0
SWEEP_WORK_S = 600.0
AT_ONCE = 16
BATCH = 100

_log = structlog.get_logger(__name__)


async def run(control: Control, vaults: Vaults, objects: Objects, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "vaults", holder, lambda fenced: VaultLoop(fenced, vaults, objects).run)


@dataclass(slots=True)
class VaultLoop:
    """One holder's work."""

    control: Control
    vaults: Vaults
    objects: Objects
    _tries: Tries = field(init=False)
    _after: str = ""
    """The last vault of those that were looked at; empty: all were."""

    def __post_init__(self) -> None:
        self._tries = Tries(self.control.clock, _log, "vaults.step_failed", "vaults.step_works_again")

    async def run(self) -> None:
        """Look at every hint and on a timer, for ever."""
        await keep_looking(self.control, subjects.VAULTS, LOOK_AGAIN_S, self.step)

    async def step(self) -> None:
        """Look once. What fails for one project holds up no other."""
        for backup in await self.control.read(_going):
            with self._tries.tried(backup.project_id, project=backup.project_id):
                await self._remove(backup)
        vaults = await self.control.read(partial(_dirty, after=self._after))
        self._after = vaults[-1].id if len(vaults) == BATCH else ""
        for vault in vaults:
            with self._tries.tried(vault.id, project=vault.id):
                await self.sweep(vault)

    async def _remove(self, backup: Backup) -> None:
        """Remove a backup: its manifest first, so that what is in the repository is never half of one."""
        await self.objects.delete(manifest_path(backup.project_id, backup.id))
        await self.control.commit(partial(_removed, id_=backup.id))

    async def sweep(self, vault: Vault) -> None:
        """Remove the chunks that no manifest names, unless a backup is being taken; of a project that was deleted, all there
        is. What is not done in one term is begun anew at the next look.

        Raises:
            ConflictError: a manifest, or the key, does not open, or a manifest is missing; nothing was removed.
        """
        until = self.control.clock.monotonic() + SWEEP_WORK_S
        if await self.control.commit(partial(_claim, id_=vault.id)) is None:
            return
        done = orphan = False
        try:
            orphan = await self.control.read(partial(_is_orphan, id_=vault.id))
            if orphan:
                done = await self._clear(manifests_prefix(vault.id), set(), until)
                done = done and await self._clear(chunks_prefix(vault.id), set(), until)
            else:
                done = await self._clear(chunks_prefix(vault.id), await self._needed(vault), until)
        finally:
            await self.control.commit(partial(_swept, id_=vault.id, done=done, orphan=orphan))

    async def _needed(self, vault: Vault) -> set[bytes]:
        """All chunks that manifests in the repository name."""
        needed: set[bytes] = set()
        listed: set[str] = set()
        cipher: VaultCipher | None = None
        async for path in self.objects.paths(manifests_prefix(vault.id)):
            cipher = cipher or await self._cipher(vault)
            backup_id = path.rpartition("/")[2]
            listed.add(backup_id)
            try:
                stored = await self.objects.get(path)
                manifest = await asyncio.to_thread(cipher.open_manifest, backup_id, stored)
            except NotFoundError:
                continue
            except BrokenError:
                raise ConflictError(
                    "backup-damaged",
                    f"the manifest of the backup {backup_id} does not open, so it is not known what it needs",
                    resolution="Delete that backup.",
                ) from None
            needed |= manifest.ids()
        await self._refuse_gaps(vault, listed)
        return needed

    async def _refuse_gaps(self, vault: Vault, listed: set[str]) -> None:
        """A list that lacks a backup which is known to be there may lack others: what they need would be cleared away."""
        whole = await self.control.read(lambda tx: tx.backups.select(eq("project_id", vault.id)))
        missing = next((each.id for each in whole if each.good and each.id not in listed), "")
        if missing:
            raise ConflictError(
                "backup-missing",
                f"the repository does not list the manifest of the backup {missing}, so it is not known what is needed",
                resolution="See that the repository is there whole; where the backup is lost, delete it.",
            )

    async def _cipher(self, vault: Vault) -> VaultCipher:
        project = await self.control.read(lambda tx: tx.projects.get(vault.id))
        if project is None:
            raise ConflictError("vault-orphaned", f"the project {vault.id} is gone, and backups of it are not")
        return VaultCipher(await self.vaults.key(vault, project))

    async def _clear(self, prefix: str, needed: set[bytes], until: float) -> bool:
        """Whether all that is no chunk that is needed could be removed in time."""
        async for some in _batches(self.objects.paths(prefix)):
            if self.control.clock.monotonic() >= until:
                return False
            gone = [path for path in some if _chunk_id(path) not in needed]
            await asyncio.gather(*(self.objects.delete(path) for path in gone))
        return True


def _chunk_id(path: str) -> bytes:
    """Of what is no chunk, something that none has."""
    try:
        return bytes.fromhex(path.rpartition("/")[2])
    except ValueError:
        return b""


async def _batches(paths: AsyncIterator[str]) -> AsyncIterator[list[str]]:
    some: list[str] = []
    async for path in paths:
        some.append(path)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _going(tx: Transaction) -> list[Backup]:
    """What is removed too early comes again: then nobody knows of it, and what it names stays for ever."""
    going = tx.backups.select(eq("state", BackupState.DELETING.value))
    return [backup for backup in going if may_be_removed(backup, tx.now())][:BATCH]


def _dirty(tx: Transaction, after: str) -> list[Vault]:
    """However many cannot be swept, they hide none for long."""
    return tx.vaults.select(eq("garbage", True), limit=BATCH, after=(after, after) if after else None)


def _is_orphan(tx: Transaction, id_: str) -> bool:
    """Whether the project is gone for good: its row and its key, and each of its backups but those that go."""
    vault, left = tx.vaults.get(id_), tx.backups.select(eq("project_id", id_))
    if vault is None or tx.projects.get(id_) is not None or tx.data_keys.get(vault.key_id) is not None:
        return False
    return all(backup.state is BackupState.DELETING for backup in left)


def _removed(unit: Unit, id_: str) -> None:
    backup = unit.tx.backups.get(id_)
    if backup is None or backup.state is not BackupState.DELETING:
        return
    unit.tx.backups.delete(id_)
    vault = unit.tx.vaults.get(backup.project_id)
    if vault is not None and not vault.garbage:
        unit.tx.vaults.update(replace(vault, garbage=True))
    volume = unit.tx.volumes.get(backup.volume_id)
    if volume is not None:
        tell(unit, volume, "volume.backup.deleted", {"backup": id_})


def _claim(unit: Unit, id_: str) -> Vault | None:
    """Have the vault for a term; None where a backup relies on what is there, or somebody else has it."""
    vault = unit.tx.vaults.get(id_)
    running = unit.tx.backups.select(eq("project_id", id_), eq("state", BackupState.RUNNING.value), limit=1)
    if vault is None or running or vault.sweeping_until > unit.now():
        return None
    return unit.tx.vaults.update(replace(vault, sweeping_until=unit.now() + SWEEP_TERM_S))


def _swept(unit: Unit, id_: str, done: bool, orphan: bool) -> None:
    """Note what a sweep came to; `orphan`: all there was went. A vault without a project is looked at until that is so, and
    no backup is left of which anything may come."""
    vault = unit.tx.vaults.get(id_)
    if vault is None:
        return
    if done and orphan and not unit.tx.backups.select(eq("project_id", id_), limit=1):
        unit.tx.vaults.delete(id_)
        return
    done = done and unit.tx.projects.get(id_) is not None
    unit.tx.vaults.update(replace(vault, sweeping_until=0.0, garbage=vault.garbage and not done))
    unit.hint(subjects.BACKUPS)
