"""Backups of volumes: taken, listed, checked, let go; and the policies that do so by themselves."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project
from shellwego.api.rest.routes.common import Here, Id, Ref, resource_router
from shellwego.api.rest.routes.volumes import key_for
from shellwego.api.rest.schemas.backups import (
    BackupCreate,
    BackupList,
    BackupPolicyBody,
    BackupPolicyView,
    BackupRestore,
    BackupView,
    backup_view,
    policy_view,
)
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.volumes import VolumeDetail
from shellwego.api.rest.volumeviews import show_volume_detail
from shellwego.api.rest.waiting import SeenVersion, States, Timeout, wait_for
from shellwego.control import backups
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.scopes import missing, project_of
from shellwego.control.targets import VolumeTarget
from shellwego.control.unit import Unit
from shellwego.control.volumes import KeyPlan
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

router = resource_router("volumes")
_SORTS: dict[str, type[str] | type[float]] = {"created_at": float}


@operation(router, "POST", "/volumes/{volume}/backups", permission="volumes:write", answer=BackupView, status=202)
async def create_backup(
    *, here: Here, access: Granted, volume: Ref, body: BackupCreate, project: Project = ""
) -> Response:
    """Take a backup of what the volume holds now. What the repository has already of it is not sent again."""

    def work(unit: Unit, row: Volume) -> Answer:
        backups.require_repository(here.backups)
        owner = project_of(unit.tx, row.project_id)
        taken = backups.request_backup(unit, owner, row, body.description, freeze=body.freeze)
        return body_answer(backup_view(taken), 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(router, "GET", "/volumes/{volume}/backups", permission="volumes:read", answer=BackupList)
async def list_backups(*, access: Granted, listing: Listing, volume: Ref, project: Project = "") -> Response:
    """A volume's backups, the newest first."""
    request = listing.page(_SORTS, "created_at:desc")

    def look(tx: Transaction, row: Volume) -> Answer:
        found = page(tx.backups, request, eq("volume_id", row.id))
        views = [backup_view(backup) for backup in found.items]
        return body_answer(BackupList(data=views, pagination=pagination(found)))

    return await read(access, VolumeTarget(volume, project), look)


@operation(router, "GET", "/volumes/{volume}/backups/{backup}", permission="volumes:read", answer=BackupView)
async def get_backup(*, access: Granted, volume: Ref, backup: Id, project: Project = "") -> Response:
    """One backup of a volume."""
    return await read(
        access,
        VolumeTarget(volume, project),
        lambda tx, row: body_answer(backup_view(backups.find_backup(tx, row, backup))),
    )


@operation(router, "GET", "/volumes/{volume}/backups/{backup}/wait", permission="volumes:read", answer=BackupView)
async def wait_backup(
    *,
    here: Here,
    access: Granted,
    volume: Ref,
    backup: Id,
    project: Project = "",
    state: States = "",
    version: SeenVersion = None,
    timeout: Timeout = 30.0,
) -> Response:
    """The backup, once it is in one of the states (or has another version), or as it is at the end of the time."""
    target = VolumeTarget(volume, project)
    states = set(filter(None, state.split(",")))

    async def look() -> BackupView:
        return await access.read(target, lambda tx, row: backup_view(backups.find_backup(tx, row, backup)))

    def reached(seen: BackupView) -> bool:
        return seen.state in states or (version is not None and seen.version != version)

    view = await wait_for(here, access, subjects.EVENTS, timeout, look=look, reached=reached)
    return respond(body_answer(view))


@operation(router, "DELETE", "/volumes/{volume}/backups/{backup}", permission="volumes:write", answer=None, status=202)
async def delete_backup(*, access: Granted, volume: Ref, backup: Id, project: Project = "") -> Response:
    """Let a backup go, also one that is being taken. What only it needed is cleared away."""

    def work(unit: Unit, row: Volume) -> Answer:
        backups.delete_backup(unit, row, backups.find_backup(unit.tx, row, backup))
        return Answer(202, "")

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "POST",
    "/volumes/{volume}/backups/{backup}/actions/verify",
    permission="volumes:write",
    answer=BackupView,
    status=202,
)
async def verify_backup(*, here: Here, access: Granted, volume: Ref, backup: Id, project: Project = "") -> Response:
    """Read a backup back and check all of it. What is damaged is told in it, by its place in the volume."""

    def work(unit: Unit, row: Volume) -> Answer:
        backups.require_repository(here.backups)
        checked = backups.verify_backup(unit, row, backups.find_backup(unit.tx, row, backup))
        return body_answer(backup_view(checked), 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "POST",
    "/volumes/{volume}/backups/{backup}/actions/restore",
    permission="volumes:write",
    answer=VolumeDetail,
    status=202,
)
async def restore_backup(
    *, here: Here, access: Granted, volume: Ref, backup: Id, body: BackupRestore, project: Project = ""
) -> Response:
    """Make a new volume of a backup. As any that is new it lives nowhere until it is mounted, and then on whatever node that
    is; its content is there before the app begins. It is encrypted as that of the backup is, with the same key."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    target = VolumeTarget(volume, project)

    def plan(tx: Transaction, row: Volume) -> tuple[ProjectRow, KeyPlan]:
        backups.require_repository(here.backups)
        backups.find_backup(tx, row, backup)
        return project_of(tx, row.project_id), KeyPlan(row.encrypted, row)

    owner, planned = await access.read(target, plan)
    key = await key_for(here, owner, planned)

    def work(unit: Unit, row: Volume) -> Answer:
        found = backups.find_backup(unit.tx, row, backup)
        made = backups.restore_backup(unit, row, found, body.to, key)
        return body_answer(show_volume_detail(unit.tx, made), 202, made.version)

    return await write(access, target, work)


@operation(router, "GET", "/volumes/{volume}/policy", permission="volumes:read", answer=BackupPolicyView)
async def get_backup_policy(*, access: Granted, volume: Ref, project: Project = "") -> Response:
    """By what policy the volume is backed up by itself; 404 where there is none."""

    def look(tx: Transaction, row: Volume) -> Answer:
        policy = tx.backup_policies.get(row.id)
        if policy is None:
            raise missing("policy of the volume", row.name)
        return body_answer(policy_view(policy))

    return await read(access, VolumeTarget(volume, project), look)


@operation(router, "PUT", "/volumes/{volume}/policy", permission="volumes:write", answer=BackupPolicyView)
async def set_backup_policy(
    *, here: Here, access: Granted, volume: Ref, body: BackupPolicyBody, project: Project = ""
) -> Response:
    """Back the volume up by itself from now on, the first time at once, and keep what the policy says."""

    def work(unit: Unit, row: Volume) -> Answer:
        backups.require_repository(here.backups)
        return body_answer(policy_view(backups.set_policy(unit, row, body.wish)))

    return await write(access, VolumeTarget(volume, project), work)


@operation(router, "DELETE", "/volumes/{volume}/policy", permission="volumes:write", answer=None, status=204)
async def remove_backup_policy(*, access: Granted, volume: Ref, project: Project = "") -> Response:
    """Back the volume up by itself no more. The backups that there are stay."""

    def work(unit: Unit, row: Volume) -> Answer:
        backups.drop_policy(unit, row)
        return Answer(204, "")

    return await write(access, VolumeTarget(volume, project), work)
