"""Apps: made, shown, changed, started, stopped, restarted, scaled, destroyed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, respond, write
from shellwego.api.rest.context import Context
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project, contains
from shellwego.api.rest.routes.common import Here, Ref, resource_router
from shellwego.api.rest.schemas.apps import Accepted, AppCreate, AppList, AppPatch, AppView, ScaleBody
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.config import plain, references
from shellwego.api.rest.schemas.deployments import RolloutBody
from shellwego.api.rest.views import show_app
from shellwego.api.rest.waiting import SeenVersion, States, Timeout, wait_for
from shellwego.control import apps, deployments
from shellwego.control.config import ConfigWish, refuse_unknown
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.targets import AppTarget, ProjectTarget
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.deployments import Deployment
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

router = resource_router("apps")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "created_at": float}
_DEFAULT_ROLLOUT = RolloutBody()


@operation(router, "POST", "/apps", permission="apps:write", answer=AppView, status=201)
async def create_app(*, here: Here, access: Granted, body: AppCreate, project: Project = "") -> Response:
    """Make an app. Nothing of it runs before its first deployment."""
    config = replace(body.config.wish(), env=plain(body.env), secrets=references(body.env))
    wish = apps.AppWish(name=body.name, config=config, counts=body.counts)

    def work(unit: Unit, row: ProjectRow) -> Answer:
        app = apps.create_app(unit, row, wish, here.domain)
        return body_answer(show_app(unit.tx, app, here.url), 201, app.version)

    return await write(access, ProjectTarget(project), work)


@operation(router, "GET", "/apps", permission="apps:read", answer=AppList)
async def list_apps(
    *,
    here: Here,
    access: Granted,
    listing: Listing,
    project: Project = "",
    q: Annotated[str | None, Query(alias="filter[q]", max_length=80, description="Part of the name.")] = None,
) -> Response:
    """The apps of a project."""
    request = listing.page(_SORTS, "name")

    def look(tx: Transaction, row: ProjectRow) -> Answer:
        found = page(tx.apps, request, eq("project_id", row.id), *contains("name", q))
        views = [show_app(tx, app, here.url) for app in found.items]
        return body_answer(AppList(data=views, pagination=pagination(found)))

    return await read(access, ProjectTarget(project), look)


def _show(here: Context) -> Callable[[Transaction, App], Answer]:
    return lambda tx, app: body_answer(show_app(tx, app, here.url), version=app.version)


@operation(router, "GET", "/apps/{app}", permission="apps:read", answer=AppView)
async def get_app(*, here: Here, access: Granted, app: Ref, project: Project = "") -> Response:
    """One app, with its state and the config that the next release would have."""
    return await read(access, AppTarget(app, project), _show(here))


@operation(router, "GET", "/apps/{app}/wait", permission="apps:read", answer=AppView)
async def wait_app(
    *,
    here: Here,
    access: Granted,
    app: Ref,
    project: Project = "",
    state: States = "",
    version: SeenVersion = None,
    timeout: Timeout = 30.0,
) -> Response:
    """The app, once it is in one of the states (or has another version), or as it is at the end of the time."""
    target = AppTarget(app, project)
    states = set(filter(None, state.split(",")))

    async def look() -> tuple[AppView, int]:
        return await access.read(target, lambda tx, row: (show_app(tx, row, here.url), row.version))

    def reached(seen: tuple[AppView, int]) -> bool:
        return seen[0].state in states or (version is not None and seen[1] != version)

    app_id = (await look())[0].id
    view, found = await wait_for(here, access, subjects.app(app_id), timeout, look=look, reached=reached)
    return respond(body_answer(view, version=found))


@operation(router, "PATCH", "/apps/{app}", permission="apps:write", answer=AppView, refusals=(412,))
async def update_app(
    *, here: Here, access: Granted, match: IfMatch, app: Ref, body: AppPatch, project: Project = ""
) -> Response:
    """Change the current config without rolling it out; the next deployment takes it along."""
    wish = body.config.wish()

    def work(unit: Unit, row: App) -> Answer:
        match.check(row.version)
        deployments.refuse_deleting(row)
        return _show(here)(unit.tx, apps.configure(unit, row, wish))

    return await write(access, AppTarget(app, project), work)


@operation(router, "DELETE", "/apps/{app}", permission="apps:write", answer=Accepted, status=202, refusals=(412,))
async def destroy_app(*, here: Here, access: Granted, match: IfMatch, app: Ref, project: Project = "") -> Response:
    """Stop everything of the app, then remove it. The app is gone when it answers 404."""

    def work(unit: Unit, row: App) -> Answer:
        match.check(row.version)
        return _accepted(here, unit, apps.destroy_app(unit, row), None)

    return await write(access, AppTarget(app, project), work)


@operation(router, "POST", "/apps/{app}/actions/start", permission="apps:write", answer=Accepted, status=202)
async def start_app(*, here: Here, access: Granted, app: Ref, project: Project = "") -> Response:
    """Run the wanted counts again."""
    return await write(
        access, AppTarget(app, project), lambda unit, row: _accepted(here, unit, apps.start_app(unit, row), None)
    )


@operation(router, "POST", "/apps/{app}/actions/stop", permission="apps:write", answer=Accepted, status=202)
async def stop_app(*, here: Here, access: Granted, app: Ref, project: Project = "") -> Response:
    """Stop every instance; counts and release are kept."""
    return await write(
        access, AppTarget(app, project), lambda unit, row: _accepted(here, unit, apps.stop_app(unit, row), None)
    )


@operation(router, "POST", "/apps/{app}/actions/restart", permission="apps:write", answer=Accepted, status=202)
async def restart_app(
    *, here: Here, access: Granted, app: Ref, body: RolloutBody = _DEFAULT_ROLLOUT, project: Project = ""
) -> Response:
    """Replace every instance by a new one of the same release."""

    def work(unit: Unit, row: App) -> Answer:
        deployment = deployments.restart(unit, row, body.rollout())
        return _accepted(here, unit, _again(unit, row), deployment)

    return await write(access, AppTarget(app, project), work)


@operation(router, "POST", "/apps/{app}/scale", permission="apps:write", answer=Accepted, status=202, refusals=(412,))
async def scale_app(
    *, here: Here, access: Granted, match: IfMatch, app: Ref, body: ScaleBody, project: Project = ""
) -> Response:
    """Set how many of each process run, and how large they are. A new size is rolled out as a new release."""
    sizes = ConfigWish(processes={name: size.wish() for name, size in body.sizes.items()})

    def work(unit: Unit, row: App) -> Answer:
        match.check(row.version)
        deployments.refuse_deleting(row)
        refuse_unknown(row.config, {f"sizes.{name[:40]}": name for name in body.sizes})
        scaled = apps.scale_app(unit, row, body.counts, sizes) if body.counts else row
        deployment = deployments.change(unit, scaled, sizes) if body.sizes else None
        return _accepted(here, unit, _again(unit, scaled), deployment)

    return await write(access, AppTarget(app, project), work)


def _again(unit: Unit, app: App) -> App:
    """The app as it is stored now."""
    return unit.tx.apps.get(app.id) or app


def _accepted(here: Context, unit: Unit, app: App, deployment: Deployment | None) -> Answer:
    view = Accepted(app=show_app(unit.tx, app, here.url), deployment_id=deployment.id if deployment else None)
    return body_answer(view, 202, app.version)
