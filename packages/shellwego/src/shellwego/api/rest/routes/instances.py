"""Instances of an app, the VMs of a project, and one-off commands."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project, one_of
from shellwego.api.rest.routes.common import Here, Id, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.resources import InstanceList, InstanceView, RunCreate, usage_view
from shellwego.api.rest.views import show_instance
from shellwego.api.rest.waiting import States, Timeout, wait_for
from shellwego.control import runs, sleep
from shellwego.control.idempotency import Answer
from shellwego.control.instances import find_instance
from shellwego.control.pages import page
from shellwego.control.streams import usage_of
from shellwego.control.targets import AppTarget, InstanceTarget, ProjectTarget
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.instances import TERMINAL, Instance
from shellwego.core.quantities import parse_size
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.ports.store import Transaction, Where, eq, within
from shellwego.wire import subjects

router = resource_router("instances")
_SORTS: dict[str, type[str] | type[float]] = {"created_at": float}
Phases = Annotated[str | None, Query(alias="filter[phase]", max_length=200)]
Owners = Annotated[str | None, Query(alias="filter[owner]", max_length=40, description="app, run")]


@operation(router, "GET", "/apps/{app}/instances", permission="instances:read", answer=InstanceList)
async def list_instances(
    *, access: Granted, listing: Listing, app: Ref, project: Project = "", phase: Phases = None, owner: Owners = None
) -> Response:
    """An app's instances, the newest first, those that ended included as long as they are kept."""
    request = listing.page(_SORTS, "created_at:desc")

    def look(tx: Transaction, row: App) -> Answer:
        found = page(tx.instances, request, eq("app_id", row.id), *_filters(phase, owner))
        views = [show_instance(tx, instance) for instance in found.items]
        return body_answer(InstanceList(data=views, pagination=pagination(found)))

    return await read(access, AppTarget(app, project), look)


def _filters(phase: str | None, owner: str | None) -> tuple[Where, ...]:
    return (*one_of("phase", phase), *one_of("owner", owner))


@operation(router, "GET", "/apps/{app}/instances/{instance}", permission="instances:read", answer=InstanceView)
async def get_instance(*, here: Here, access: Granted, app: Ref, instance: Id, project: Project = "") -> Response:
    """One instance of an app, with what its VM uses."""

    def look(tx: Transaction, row: App) -> _Seen:
        found = find_instance(tx, row, instance)
        return found, show_instance(tx, found)

    return await _with_usage(here, await access.read(AppTarget(app, project), look))


_Seen = tuple[Instance, InstanceView]


async def _with_usage(here: Here, seen: _Seen) -> Response:
    """An instance as its row tells, and as its node does now."""
    instance, view = seen
    used = usage_view(await usage_of(here.streams, instance))
    return respond(body_answer(view.model_copy(update={"usage": used}), version=instance.version))


@operation(router, "GET", "/apps/{app}/instances/{instance}/wait", permission="instances:read", answer=InstanceView)
async def wait_instance(
    *,
    here: Here,
    access: Granted,
    app: Ref,
    instance: Id,
    project: Project = "",
    state: States = "",
    timeout: Timeout = 30.0,
) -> Response:
    """The instance, once it is in one of the phases (left out: over), or as it is at the end of the time."""
    target = AppTarget(app, project)
    states = set(filter(None, state.split(","))) or {phase.value for phase in TERMINAL}

    async def look() -> InstanceView:
        return await access.read(target, lambda tx, row: show_instance(tx, find_instance(tx, row, instance)))

    subject = subjects.app((await look()).app_id)
    view = await wait_for(here, access, subject, timeout, look=look, reached=lambda seen: seen.phase in states)
    return respond(body_answer(view))


@operation(router, "POST", "/apps/{app}/runs", permission="instances:exec", answer=InstanceView, status=201)
async def create_run(*, access: Granted, app: Ref, body: RunCreate, project: Project = "") -> Response:
    """Run a command in a new VM of the current release. Its output is in its logs; it is gone when the command ends."""
    memory = None if body.memory is None else parse_size(body.memory)
    wish = runs.RunWish(command=tuple(body.command), process=body.process, memory_bytes=memory)

    def work(unit: Unit, row: App) -> Answer:
        run = runs.create_run(unit, row, wish)
        return body_answer(show_instance(unit.tx, run), 201, run.version)

    return await write(access, AppTarget(app, project), work)


@operation(router, "DELETE", "/apps/{app}/runs/{instance}", permission="instances:exec", answer=InstanceView)
async def stop_run(*, access: Granted, app: Ref, instance: Id, project: Project = "") -> Response:
    """Stop a one-off command."""

    def work(unit: Unit, row: App) -> Answer:
        run = runs.stop_run(unit, row, instance)
        return body_answer(show_instance(unit.tx, run), version=run.version)

    return await write(access, AppTarget(app, project), work)


@operation(router, "GET", "/vms", permission="instances:read", answer=InstanceList)
async def list_vms(
    *, access: Granted, listing: Listing, project: Project = "", phase: Phases = None, owner: Owners = None
) -> Response:
    """All instances of a project's apps that have a VM, or had one, the newest first."""
    request = listing.page(_SORTS, "created_at:desc")

    def look(tx: Transaction, row: ProjectRow) -> Answer:
        app_ids = [app.id for app in tx.apps.select(eq("project_id", row.id))]
        found = page(tx.instances, request, within("app_id", app_ids), *_filters(phase, owner))
        views = [show_instance(tx, instance) for instance in found.items]
        return body_answer(InstanceList(data=views, pagination=pagination(found)))

    return await read(access, ProjectTarget(project), look)


@operation(
    router, "POST", "/vms/{instance}/actions/suspend", permission="instances:write", answer=InstanceView, status=202
)
async def suspend_vm(*, access: Granted, instance: Id) -> Response:
    """Put an instance to sleep: it leaves the routes, is emptied, and its VM's memory goes to its node's disk. Follow its
    phase; where it cannot be done, `sleep` is `awake` again, and an event has the reason."""

    def work(unit: Unit, row: Instance) -> Answer:
        return _shown(unit, sleep.suspend(unit, row))

    return await write(access, InstanceTarget(instance), work)


@operation(
    router, "POST", "/vms/{instance}/actions/resume", permission="instances:write", answer=InstanceView, status=202
)
async def resume_vm(*, access: Granted, instance: Id) -> Response:
    """Wake an instance. It goes on where it was, and is in the routes once it passes its checks. Follow its phase."""

    def work(unit: Unit, row: Instance) -> Answer:
        return _shown(unit, sleep.resume(unit, row))

    return await write(access, InstanceTarget(instance), work)


def _shown(unit: Unit, instance: Instance) -> Answer:
    return body_answer(show_instance(unit.tx, instance), 202, instance.version)


@operation(router, "GET", "/vms/{instance}", permission="instances:read", answer=InstanceView)
async def get_vm(*, here: Here, access: Granted, instance: Id) -> Response:
    """One instance with its VM and what that uses, by the instance's id."""

    def look(tx: Transaction, row: Instance) -> _Seen:
        return row, show_instance(tx, row)

    return await _with_usage(here, await access.read(InstanceTarget(instance), look))
