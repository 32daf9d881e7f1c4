"""Vaults: the key of each project's part of the repository, and who is given it.

The key is a data key of the envelope (`sealing`). An agent gets it, with what opens the store, just before it takes, checks
or reads a backup that it was told of, and never sooner; each handing over is audited before the agent has it.
"""

from __future__ import annotations

from dataclasses import replace

from shellwego.control.nodecalls import calling_node
from shellwego.control.scopes import missing, project_scope
from shellwego.control.sealing import OpenKey, Sealer, forget, keep_key
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.backups import Backup, BackupAccess, BackupAccessRequest, BackupState, RepositoryPlace, Vault
from shellwego.core.envelope import Label
from shellwego.core.errors import UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.core.tenancy import Project
from shellwego.ports.store import Transaction
from shellwego.wire import subjects


def vault_label(project: Project) -> Label:
    """Under which the key of a project's vault is wrapped."""
    scope = project_scope(project)
    return Label(
        purpose="backups", subject=project.id, organization_id=scope.organization_id, project_id=scope.project_id
    )


class Vaults:
    """`place`: where the repository is; None: the operator gave none."""

    def __init__(self, control: Control, sealer: Sealer, place: RepositoryPlace | None) -> None:
        self._control = control
        self._sealer = sealer
        self._place = place

    async def ensure(self, project: Project) -> None:
        """Have a vault for the project. Raises what `Sealer.new_key` and `keep_key` raise."""
        if await self._control.read(lambda tx: tx.vaults.get(project.id)) is None:
            key = await self._sealer.new_key(vault_label(project))
            await self._control.commit(lambda unit: _keep(unit, project, key))

    async def key(self, vault: Vault, project: Project) -> Sensitive:
        """What everything in the vault is under.

        Raises:
            ConflictError: it does not open any more.
        """
        return (await self._sealer.open(vault.key_id, vault_label(project))).key

    async def access(self, request: BackupAccessRequest) -> BackupAccess:
        """See `ports.uplink.NodeUplink.backup_access`."""
        place = self._place
        if place is None:
            raise UnavailableError("no-repository", "this platform has nowhere to put backups")
        backup, vault, project = await self._control.read(lambda tx: _look(tx, request))
        key = await self.key(vault, project)
        await self._control.commit(lambda unit: _record(unit, request, backup, project), Caller(request.node_id))
        return BackupAccess(place=place, project_id=project.id, key=key, digest=backup.digest)


def forget_vault(unit: Unit, project: Project) -> None:
    """Destroy the key of a project that goes, so that nothing of its backups can be read again; what is left in the
    repository is swept, and the vault's row goes with it."""
    vault = unit.tx.vaults.get(project.id)
    if vault is not None:
        forget(unit, vault.key_id)
        unit.tx.vaults.update(replace(vault, garbage=True))
        unit.hint(subjects.VAULTS)


def _keep(unit: Unit, project: Project, key: OpenKey) -> None:
    if unit.tx.vaults.get(project.id) is None and unit.tx.projects.get(project.id) is not None:
        keep_key(unit, key.row)
        unit.tx.vaults.insert(Vault(id=project.id, key_id=key.row.id, created_at=unit.now()))


def _look(tx: Transaction, request: BackupAccessRequest) -> tuple[Backup, Vault, Project]:
    node = calling_node(tx, request.node_id, request.epoch)
    backup = tx.backups.get(request.backup_id)
    if backup is None or not _may_have(tx, backup, node.id, request.volume_id):
        raise missing("backup", request.backup_id)
    vault, project = tx.vaults.get(backup.project_id), tx.projects.get(backup.project_id)
    if vault is None or project is None:
        raise missing("backup", request.backup_id)
    return backup, vault, project


def _may_have(tx: Transaction, backup: Backup, node_id: str, volume_id: str) -> bool:
    """Whether the node is to take or check it now, or to make this volume of it."""
    if not volume_id:
        return backup.node_id == node_id and (backup.verifying or backup.state is BackupState.RUNNING)
    volume = tx.volumes.get(volume_id)
    return (
        volume is not None
        and volume.node_id == node_id
        and volume.project_id == backup.project_id
        and volume.source_backup_id == backup.id
        and not (volume.made or volume.deleting)
        and backup.state is BackupState.AVAILABLE
    )


def _record(unit: Unit, request: BackupAccessRequest, backup: Backup, project: Project) -> None:
    unit.audit(
        "backups:use",
        backup.id,
        organization_id=project.organization_id,
        project_id=project.id,
        detail=f"to make {request.volume_id}" if request.volume_id else f"of {backup.volume_id}",
    )
