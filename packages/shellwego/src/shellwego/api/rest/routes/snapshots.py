"""Snapshots of volumes: taken, listed, let go; and volumes put back to them."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project
from shellwego.api.rest.routes.common import Here, Id, Ref, resource_router
from shellwego.api.rest.routes.volumes import key_for
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.volumes import (
    RestoreBody,
    SnapshotCreate,
    SnapshotList,
    SnapshotView,
    VolumeDetail,
    snapshot_view,
)
from shellwego.api.rest.volumeviews import show_snapshot, standby_copy, volume_answer
from shellwego.control import volumes
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.scopes import project_of
from shellwego.control.targets import VolumeTarget
from shellwego.control.unit import Unit
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction, eq

router = resource_router("volumes")
_SORTS: dict[str, type[str] | type[float]] = {"created_at": float}


@operation(router, "POST", "/volumes/{volume}/snapshots", permission="volumes:write", answer=SnapshotView, status=202)
async def create_snapshot(*, access: Granted, volume: Ref, body: SnapshotCreate, project: Project = "") -> Response:
    """Keep what the volume holds now."""

    def work(unit: Unit, row: Volume) -> Answer:
        taken = volumes.take_snapshot(unit, row, body.description, freeze=body.freeze)
        return body_answer(show_snapshot(unit.tx, row, taken), 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(router, "GET", "/volumes/{volume}/snapshots", permission="volumes:read", answer=SnapshotList)
async def list_snapshots(*, access: Granted, listing: Listing, volume: Ref, project: Project = "") -> Response:
    """A volume's snapshots, the newest first."""
    request = listing.page(_SORTS, "created_at:desc")

    def look(tx: Transaction, row: Volume) -> Answer:
        found = page(tx.snapshots, request, eq("volume_id", row.id))
        standby = standby_copy(tx, row)
        views = [snapshot_view(snapshot, standby) for snapshot in found.items]
        return body_answer(SnapshotList(data=views, pagination=pagination(found)))

    return await read(access, VolumeTarget(volume, project), look)


@operation(router, "GET", "/volumes/{volume}/snapshots/{snapshot}", permission="volumes:read", answer=SnapshotView)
async def get_snapshot(*, access: Granted, volume: Ref, snapshot: Id, project: Project = "") -> Response:
    """One snapshot of a volume."""
    return await read(
        access,
        VolumeTarget(volume, project),
        lambda tx, row: body_answer(show_snapshot(tx, row, volumes.find_snapshot(tx, row, snapshot))),
    )


@operation(
    router,
    "DELETE",
    "/volumes/{volume}/snapshots/{snapshot}",
    permission="volumes:write",
    answer=None,
    status=202,
)
async def delete_snapshot(*, access: Granted, volume: Ref, snapshot: Id, project: Project = "") -> Response:
    """Destroy a snapshot; refused while a volume that began as a copy of it is there."""

    def work(unit: Unit, row: Volume) -> Answer:
        volumes.delete_snapshot(unit, row, volumes.find_snapshot(unit.tx, row, snapshot))
        return Answer(202, "")

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "POST",
    "/volumes/{volume}/restore",
    permission="volumes:write",
    answer=VolumeDetail,
    status=202,
    refusals=(412,),
)
async def restore_volume(
    *, here: Here, access: Granted, match: IfMatch, volume: Ref, body: RestoreBody, project: Project = ""
) -> Response:
    """Put it back to one of its snapshots: in place, while nothing has it, or as a new volume."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    target = VolumeTarget(volume, project)
    wish = None if body.to is None else volumes.VolumeWish(name=body.to, snapshot_id=body.snapshot, named_in="to")

    def plan(tx: Transaction, row: Volume) -> tuple[ProjectRow, volumes.KeyPlan]:
        volumes.find_snapshot(tx, row, body.snapshot)
        owner = project_of(tx, row.project_id)
        return owner, volumes.plan_key(tx, owner, wish) if wish else volumes.KeyPlan(False)

    owner, planned = await access.read(target, plan)
    key = await key_for(here, owner, planned)

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        snapshot = volumes.find_snapshot(unit.tx, row, body.snapshot)
        if wish is None:
            return volume_answer(unit.tx, volumes.restore_volume(unit, row, snapshot), 202)
        return volume_answer(unit.tx, volumes.create_volume(unit, owner, wish, key), 202)

    return await write(access, target, work)
