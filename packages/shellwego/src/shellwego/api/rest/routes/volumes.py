"""Volumes: made, resized, attached, kept in snapshots, put back, deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Filter, Listing, Project, contains, one_of
from shellwego.api.rest.routes.common import Here, Id, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.volumes import (
    AttachBody,
    DetachBody,
    ResizeBody,
    RestoreBody,
    SnapshotCreate,
    SnapshotList,
    SnapshotView,
    VolumeChange,
    VolumeCreate,
    VolumeDetail,
    VolumeList,
    VolumePatch,
    VolumeView,
    snapshot_view,
    volume_view,
)
from shellwego.api.rest.waiting import SeenVersion, States, Timeout, wait_for
from shellwego.control import attachments, volumes
from shellwego.control.idempotency import Answer
from shellwego.control.mounts import users
from shellwego.control.pages import page
from shellwego.control.scopes import AppTarget, ProjectTarget, VolumeTarget, missing
from shellwego.control.unit import Unit
from shellwego.core.apps import App, Mount
from shellwego.core.deployments import Deployment
from shellwego.core.nodes import NodeHealth
from shellwego.core.quantities import parse_size
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

router = resource_router("volumes")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "created_at": float}
_SNAPSHOT_SORTS: dict[str, type[str] | type[float]] = {"created_at": float}


def _view(tx: Transaction, volume: Volume) -> VolumeView:
    node = tx.nodes.get(volume.node_id) if volume.node_id else None
    seen = volume.observed
    reason = seen.reason or seen.restore_reason
    if node is not None and node.health is NodeHealth.DOWN:
        reason = f"its node {node.name} is down, and its data is nowhere else"
    return volume_view(volume, node=node.name if node else None, reason=reason)


def _detail(tx: Transaction, volume: Volume) -> VolumeDetail:
    mounted_by = sorted(app.name for app in users(tx, volume))
    return VolumeDetail(mounted_by=mounted_by, **_view(tx, volume).model_dump())


def _answer(tx: Transaction, volume: Volume, status: int = 200) -> Answer:
    return body_answer(_detail(tx, volume), status, volume.version)


def _project_of(tx: Transaction, volume: Volume) -> ProjectRow:
    project = tx.projects.get(volume.project_id)
    if project is None:
        raise missing("volume", volume.id)
    return project


@operation(router, "POST", "/volumes", permission="volumes:write", answer=VolumeDetail, status=201)
async def create_volume(*, access: Granted, body: VolumeCreate, project: Project = "") -> Response:
    """Make a volume, empty or as a copy of a snapshot."""
    wish = volumes.VolumeWish(
        name=body.name, size_bytes=body.size_bytes, snapshot_id=body.snapshot or "", protected=body.protected
    )

    def work(unit: Unit, row: ProjectRow) -> Answer:
        return _answer(unit.tx, volumes.create_volume(unit, row, wish), 201)

    return await write(access, ProjectTarget(project), work)


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
        views = [_view(tx, volume) for volume in found.items]
        return body_answer(VolumeList(data=views, pagination=pagination(found)))

    return await read(access, ProjectTarget(project), look)


@operation(router, "GET", "/volumes/{volume}", permission="volumes:read", answer=VolumeDetail)
async def get_volume(*, access: Granted, volume: Ref, project: Project = "") -> Response:
    """One volume, with who mounts it."""
    return await read(access, VolumeTarget(volume, project), _answer)


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
        return await access.read(target, _detail)

    def reached(seen: VolumeDetail) -> bool:
        return seen.state in states or (version is not None and seen.version != version)

    view = await wait_for(here, subjects.EVENTS, timeout, look, reached)
    return respond(body_answer(view, version=view.version))


@operation(router, "PATCH", "/volumes/{volume}", permission="volumes:write", answer=VolumeDetail, refusals=(412,))
async def update_volume(
    *, access: Granted, match: IfMatch, volume: Ref, body: VolumePatch, project: Project = ""
) -> Response:
    """Protect it from being deleted, or do so no more."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        return _answer(unit.tx, volumes.protect_volume(unit, row, body.protected))

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
        volume=_detail(unit.tx, volume), app_id=app.id, deployment_id=deployment.id if deployment else None
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
        return _answer(unit.tx, volumes.resize_volume(unit, _project_of(unit.tx, row), row, size), 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(router, "POST", "/volumes/{volume}/snapshots", permission="volumes:write", answer=SnapshotView, status=202)
async def create_snapshot(*, access: Granted, volume: Ref, body: SnapshotCreate, project: Project = "") -> Response:
    """Keep what the volume holds now."""

    def work(unit: Unit, row: Volume) -> Answer:
        taken = volumes.take_snapshot(unit, row, body.description, freeze=body.freeze)
        return body_answer(snapshot_view(taken), 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(router, "GET", "/volumes/{volume}/snapshots", permission="volumes:read", answer=SnapshotList)
async def list_snapshots(*, access: Granted, listing: Listing, volume: Ref, project: Project = "") -> Response:
    """A volume's snapshots, the newest first."""
    request = listing.page(_SNAPSHOT_SORTS, "created_at:desc")

    def look(tx: Transaction, row: Volume) -> Answer:
        found = page(tx.snapshots, request, eq("volume_id", row.id))
        views = [snapshot_view(snapshot) for snapshot in found.items]
        return body_answer(SnapshotList(data=views, pagination=pagination(found)))

    return await read(access, VolumeTarget(volume, project), look)


@operation(router, "GET", "/volumes/{volume}/snapshots/{snapshot}", permission="volumes:read", answer=SnapshotView)
async def get_snapshot(*, access: Granted, volume: Ref, snapshot: Id, project: Project = "") -> Response:
    """One snapshot of a volume."""
    return await read(
        access,
        VolumeTarget(volume, project),
        lambda tx, row: body_answer(snapshot_view(volumes.find_snapshot(tx, row, snapshot))),
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
    *, access: Granted, match: IfMatch, volume: Ref, body: RestoreBody, project: Project = ""
) -> Response:
    """Put it back to one of its snapshots: in place, while nothing has it, or as a new volume."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        snapshot = volumes.find_snapshot(unit.tx, row, body.snapshot)
        if body.to is None:
            return _answer(unit.tx, volumes.restore_volume(unit, row, snapshot), 202)
        wish = volumes.VolumeWish(name=body.to, snapshot_id=snapshot.id)
        return _answer(unit.tx, volumes.create_volume(unit, _project_of(unit.tx, row), wish), 202)

    return await write(access, VolumeTarget(volume, project), work)
