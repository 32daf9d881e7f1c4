"""Volumes: made, resized, attached, moved, deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, respond, write
from shellwego.api.rest.context import Context
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Filter, Listing, Project, contains, one_of
from shellwego.api.rest.routes.common import Here, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.volumes import (
    AttachBody,
    DetachBody,
    ResizeBody,
    VolumeChange,
    VolumeCreate,
    VolumeDetail,
    VolumeList,
    VolumeMoveBody,
    VolumePatch,
)
from shellwego.api.rest.volumeviews import show_volume, show_volume_detail, volume_answer
from shellwego.api.rest.waiting import SeenVersion, States, Timeout, wait_for
from shellwego.control import attachments, volumemoves, volumes
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.scopes import project_of
from shellwego.control.sealing import Sealing
from shellwego.control.targets import AppTarget, NodeTarget, ProjectTarget, VolumeTarget
from shellwego.control.unit import Unit
from shellwego.control.volumekeys import VolumeKeys
from shellwego.core.apps import App, Mount
from shellwego.core.deployments import Deployment
from shellwego.core.quantities import parse_size
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

router = resource_router("volumes")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "created_at": float}


@operation(router, "POST", "/volumes", permission="volumes:write", answer=VolumeDetail, status=201)
async def create_volume(*, here: Here, access: Granted, body: VolumeCreate, project: Project = "") -> Response:
    """Make a volume, empty or as a copy of a snapshot."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    target = ProjectTarget(project)
    wish = volumes.VolumeWish(
        name=body.name,
        size_bytes=body.size_bytes,
        snapshot_id=body.snapshot or "",
        protected=body.protected,
        encrypted=body.encrypted,
    )
    key = await key_for(here, *await access.read(target, lambda tx, row: (row, volumes.plan_key(tx, row, wish))))

    def work(unit: Unit, row: ProjectRow) -> Answer:
        return volume_answer(unit.tx, volumes.create_volume(unit, row, wish, key), 201)

    return await write(access, target, work)


async def key_for(here: Context, project: ProjectRow, plan: volumes.KeyPlan) -> Sealing | None:
    """The key of a volume that is to be made; None: it is not encrypted."""
    keys = VolumeKeys(here.control, here.sealer)
    return await keys.for_new(project, plan.origin) if plan.encrypted else None


@operation(router, "GET", "/volumes", permission="volumes:read", answer=VolumeList)
async def list_volumes(
    *,
    access: Granted,
    listing: Listing,
    project: Project = "",
    state: Annotated[Filter, Query(alias="filter[state]", max_length=200, description="Any of these.")] = None,
    q: Annotated[str | None, Query(alias="filter[q]", max_length=63, description="Part of the name.")] = None,
) -> Response:
    """The volumes of a project."""
    request = listing.page(_SORTS, "name")
    states = one_of("state", state)

    def look(tx: Transaction, row: ProjectRow) -> Answer:
        found = page(tx.volumes, request, eq("project_id", row.id), *states, *contains("name", q))
        views = [show_volume(tx, volume) for volume in found.items]
        return body_answer(VolumeList(data=views, pagination=pagination(found)))

    return await read(access, ProjectTarget(project), look)


@operation(router, "GET", "/volumes/{volume}", permission="volumes:read", answer=VolumeDetail)
async def get_volume(*, access: Granted, volume: Ref, project: Project = "") -> Response:
    """One volume, with who mounts it."""
    return await read(access, VolumeTarget(volume, project), volume_answer)


@operation(router, "GET", "/volumes/{volume}/wait", permission="volumes:read", answer=VolumeDetail)
async def wait_volume(
    *,
    here: Here,
    access: Granted,
    volume: Ref,
    project: Project = "",
    state: States = "",
    version: SeenVersion = None,
    timeout: Timeout = 30.0,
) -> Response:
    """The volume, once it is in one of the states (or has another version), or as it is at the end of the time."""
    target = VolumeTarget(volume, project)
    states = set(filter(None, state.split(",")))

    async def look() -> VolumeDetail:
        return await access.read(target, show_volume_detail)

    def reached(seen: VolumeDetail) -> bool:
        return seen.state in states or (version is not None and seen.version != version)

    view = await wait_for(here, access, subjects.EVENTS, timeout, look=look, reached=reached)
    return respond(body_answer(view, version=view.version))


@operation(router, "PATCH", "/volumes/{volume}", permission="volumes:write", answer=VolumeDetail, refusals=(412,))
async def update_volume(
    *, access: Granted, match: IfMatch, volume: Ref, body: VolumePatch, project: Project = ""
) -> Response:
    """Protect it from being deleted, or do so no more."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        return volume_answer(unit.tx, volumes.protect_volume(unit, row, body.protected))

    return await write(access, VolumeTarget(volume, project), work)


@operation(router, "DELETE", "/volumes/{volume}", permission="volumes:write", answer=None, status=202, refusals=(412,))
async def delete_volume(*, access: Granted, match: IfMatch, volume: Ref, project: Project = "") -> Response:
    """Destroy a volume. It is gone when it answers 404; refused while something mounts it, it has snapshots, or it is
    protected."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        volumes.delete_volume(unit, row)
        return Answer(202, "")

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "POST",
    "/volumes/{volume}/actions/attach",
    permission="volumes:write",
    answer=VolumeChange,
    status=202,
    refusals=(412,),
)
async def attach_volume(
    *, access: Granted, match: IfMatch, volume: Ref, body: AttachBody, project: Project = ""
) -> Response:
    """Have a process of an app mount it, which is rolled out. Takes `apps:write` on the app, too."""
    mount = Mount(source="", destination=body.destination, process=body.process, read_only=body.read_only)

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        app = access.require(unit.tx, AppTarget(body.app, row.project_id), "apps:write")
        return _changed(unit, row, app, attachments.attach(unit, row, app, mount, stage=body.stage))

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "POST",
    "/volumes/{volume}/actions/detach",
    permission="volumes:write",
    answer=VolumeChange,
    status=202,
    refusals=(412,),
)
async def detach_volume(
    *, access: Granted, match: IfMatch, volume: Ref, body: DetachBody, project: Project = ""
) -> Response:
    """Have the app that mounts it go on without it, which is rolled out. Takes `apps:write` on the app, too."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        app = attachments.mounting_app(unit.tx, row)
        access.require(unit.tx, AppTarget(app.id), "apps:write")
        return _changed(unit, row, app, attachments.detach(unit, row, app, stage=body.stage))

    return await write(access, VolumeTarget(volume, project), work)


def _changed(unit: Unit, volume: Volume, app: App, deployment: Deployment | None) -> Answer:
    view = VolumeChange(
        volume=show_volume_detail(unit.tx, volume), app_id=app.id, deployment_id=deployment.id if deployment else None
    )
    return body_answer(view, 202)


@operation(
    router,
    "POST",
    "/volumes/{volume}/actions/resize",
    permission="volumes:write",
    answer=VolumeDetail,
    status=202,
    refusals=(412,),
)
async def resize_volume(
    *, access: Granted, match: IfMatch, volume: Ref, body: ResizeBody, project: Project = ""
) -> Response:
    """Make it larger, also while it is in use."""
    size = parse_size(body.size)

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        return volume_answer(unit.tx, volumes.resize_volume(unit, project_of(unit.tx, row.project_id), row, size), 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "POST",
    "/volumes/{volume}/actions/move",
    permission="volumes:write",
    answer=VolumeDetail,
    status=202,
    refusals=(412,),
)
async def move_volume(
    *, access: Granted, match: IfMatch, volume: Ref, body: VolumeMoveBody, project: Project = ""
) -> Response:
    """Have it go to another node, with its snapshots; the app that mounts it follows, and is stopped for the last of it
    alone. Takes `nodes:read` on the platform, too."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        node = access.require(unit.tx, NodeTarget(body.node), "nodes:read")
        return volume_answer(unit.tx, volumemoves.move_volume(unit, row, node), 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "POST",
    "/volumes/{volume}/actions/cancel-move",
    permission="volumes:write",
    answer=VolumeDetail,
    status=202,
    refusals=(412,),
)
async def cancel_volume_move(*, access: Granted, match: IfMatch, volume: Ref, project: Project = "") -> Response:
    """Give its move up: it stays where it is, and the app goes on there. Refused once it has arrived."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        return volume_answer(unit.tx, volumemoves.cancel_move(unit, row), 202)

    return await write(access, VolumeTarget(volume, project), work)
