"""Deployments, plans, releases and rollback."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, respond, write
from shellwego.api.rest.context import Context
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project, one_of
from shellwego.api.rest.routes.common import Here, Id, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.deployments import (
    ChangeView,
    DeploymentCreate,
    DeploymentList,
    DeploymentView,
    DiffView,
    PlanView,
    ProcessPlanView,
    ReleaseList,
    ReleaseView,
    RollbackBody,
)
from shellwego.api.rest.views import show_deployment, show_releases
from shellwego.api.rest.waiting import SeenVersion, States, Timeout, wait_for
from shellwego.control import deployments, plans, releases
from shellwego.control.authorization import Access
from shellwego.control.forecasts import ProcessForecast
from shellwego.control.idempotency import Answer
from shellwego.control.images import ChosenImage, choose_image
from shellwego.control.pages import page
from shellwego.control.targets import AppTarget
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.errors import UnavailableError
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

router = resource_router("deployments")
_DEPLOYMENT_SORTS: dict[str, type[str] | type[float]] = {"created_at": float}
_RELEASE_SORTS: dict[str, type[str] | type[float]] = {"number": float}
_DEFAULT_ROLLBACK = RollbackBody()


async def _chosen(here: Context, access: Access, target: AppTarget, image: str | None) -> ChosenImage | None:
    """What the reference means, asked before the transaction, and only for who may deploy."""
    app = await access.read(target, lambda tx, row: row)
    if image is None:
        return None
    try:
        return await choose_image(here.control, here.images, app.project_id, image)
    except UnavailableError as error:
        if not app.last_release_number:
            raise
        remedy = f"{error.resolution} A deploy without an image keeps the one that the app has.".strip()
        raise UnavailableError(error.code, error.message, resolution=remedy) from error


@operation(
    router,
    "POST",
    "/apps/{app}/deployments",
    permission="deployments:write",
    answer=DeploymentView,
    status=202,
    refusals=(412,),
)
async def create_deployment(
    *, here: Here, access: Granted, match: IfMatch, app: Ref, body: DeploymentCreate, project: Project = ""
) -> Response:
    """Roll out an image, a changed config, or both. Follow the deployment by its id."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    target = AppTarget(app, project)
    image = await _chosen(here, access, target, body.image)

    def work(unit: Unit, row: App) -> Answer:
        match.check(row.version)
        deployment = deployments.request_deployment(
            unit, row, body.wish(row), image, body.rollout(), counts=body.counts
        )
        return body_answer(show_deployment(unit.tx, deployment), 202, deployment.version)

    return await write(access, target, work)


@operation(router, "POST", "/apps/{app}/plan", permission="deployments:write", answer=PlanView)
async def plan_deployment(
    *, here: Here, access: Granted, app: Ref, body: DeploymentCreate, project: Project = ""
) -> Response:
    """What this deploy would change. Nothing is done."""
    target = AppTarget(app, project)
    image = await _chosen(here, access, target, body.image)

    def look(tx: Transaction, row: App) -> Answer:
        plan = deployments.plan(tx, row, body.wish(row), image, body.rollout(), counts=body.counts)
        return body_answer(
            PlanView(
                changed=plan.changed,
                from_release=plan.from_release,
                to_release=plan.to_release,
                image_digest=plan.image_digest,
                changes=_changes(plan.changes),
                replaced=dict(plan.replaced),
                processes=[_forecast(each) for each in plan.processes],
            )
        )

    return await read(access, target, look)


def _forecast(each: ProcessForecast) -> ProcessPlanView:
    return ProcessPlanView(
        process=each.process,
        count=each.count,
        kept=each.kept,
        started=each.started,
        stopped=each.stopped,
        obstacle=each.obstacle or None,
        pause=each.pause or None,
        evicts=each.evicts,
    )


def _changes(changes: tuple[plans.Change, ...]) -> list[ChangeView]:
    return [ChangeView(field=change.field, before=change.before, after=change.after) for change in changes]


@operation(router, "GET", "/apps/{app}/deployments", permission="deployments:read", answer=DeploymentList)
async def list_deployments(
    *,
    access: Granted,
    listing: Listing,
    app: Ref,
    project: Project = "",
    state: Annotated[str | None, Query(alias="filter[state]", max_length=200)] = None,
) -> Response:
    """An app's deployments, the newest first."""
    request = listing.page(_DEPLOYMENT_SORTS, "created_at:desc")

    def look(tx: Transaction, row: App) -> Answer:
        found = page(tx.deployments, request, eq("app_id", row.id), *one_of("state", state))
        views = [show_deployment(tx, deployment) for deployment in found.items]
        return body_answer(DeploymentList(data=views, pagination=pagination(found)))

    return await read(access, AppTarget(app, project), look)


@operation(router, "GET", "/apps/{app}/deployments/{deployment}", permission="deployments:read", answer=DeploymentView)
async def get_deployment(*, access: Granted, app: Ref, deployment: Id, project: Project = "") -> Response:
    """One deployment, with its stage and the reason why it waits or ended."""

    def look(tx: Transaction, row: App) -> Answer:
        found = deployments.find_deployment(tx, row, deployment)
        return body_answer(show_deployment(tx, found), version=found.version)

    return await read(access, AppTarget(app, project), look)


@operation(
    router,
    "GET",
    "/apps/{app}/deployments/{deployment}/wait",
    permission="deployments:read",
    answer=DeploymentView,
)
async def wait_deployment(
    *,
    here: Here,
    access: Granted,
    app: Ref,
    deployment: Id,
    project: Project = "",
    state: States = "",
    version: SeenVersion = None,
    timeout: Timeout = 30.0,
) -> Response:
    """The deployment, once it is in one of the states (left out: over), or has another version, or the time is up."""
    target = AppTarget(app, project)
    states = set(filter(None, state.split(",")))

    async def look() -> DeploymentView:
        return await access.read(
            target, lambda tx, row: show_deployment(tx, deployments.find_deployment(tx, row, deployment))
        )

    def reached(seen: DeploymentView) -> bool:
        as_asked = seen.state in states if states else seen.finished
        return as_asked or (version is not None and seen.version != version)

    view = await wait_for(here, access, subjects.app((await look()).app_id), timeout, look=look, reached=reached)
    return respond(body_answer(view, version=view.version))


@operation(
    router,
    "POST",
    "/apps/{app}/deployments/{deployment}/actions/cancel",
    permission="deployments:write",
    answer=DeploymentView,
    refusals=(412,),
)
async def cancel_deployment(
    *, access: Granted, match: IfMatch, app: Ref, deployment: Id, project: Project = ""
) -> Response:
    """Call a deployment off; the app returns to its last good release."""

    def work(unit: Unit, row: App) -> Answer:
        found = deployments.find_deployment(unit.tx, row, deployment)
        match.check(found.version)
        cancelled = deployments.cancel(unit, row, found)
        return body_answer(show_deployment(unit.tx, cancelled), version=cancelled.version)

    return await write(access, AppTarget(app, project), work)


@operation(
    router,
    "POST",
    "/apps/{app}/actions/rollback",
    permission="deployments:write",
    answer=DeploymentView,
    status=202,
    refusals=(412,),
)
async def rollback_app(
    *, access: Granted, match: IfMatch, app: Ref, body: RollbackBody = _DEFAULT_ROLLBACK, project: Project = ""
) -> Response:
    """Roll out the content of an earlier release again, as a new release."""

    def work(unit: Unit, row: App) -> Answer:
        match.check(row.version)
        deployment = deployments.rollback(unit, row, body.release, body.rollout())
        return body_answer(show_deployment(unit.tx, deployment), 202, deployment.version)

    return await write(access, AppTarget(app, project), work)


@operation(router, "GET", "/apps/{app}/releases", permission="deployments:read", answer=ReleaseList)
async def list_releases(*, access: Granted, listing: Listing, app: Ref, project: Project = "") -> Response:
    """An app's releases, the newest first."""
    request = listing.page(_RELEASE_SORTS, "number:desc")

    def look(tx: Transaction, row: App) -> Answer:
        found = page(tx.releases, request, eq("app_id", row.id))
        views = show_releases(tx, row, found.items)
        return body_answer(ReleaseList(data=views, pagination=pagination(found)))

    return await read(access, AppTarget(app, project), look)


@operation(router, "GET", "/apps/{app}/releases/{release}", permission="deployments:read", answer=ReleaseView)
async def get_release(*, access: Granted, app: Ref, release: Id, project: Project = "") -> Response:
    """One release, by id, number, or as `v7`."""

    def look(tx: Transaction, row: App) -> Answer:
        (view,) = show_releases(tx, row, [releases.find_release(tx, row, release)])
        return body_answer(view)

    return await read(access, AppTarget(app, project), look)


@operation(router, "GET", "/apps/{app}/releases/{release}/diff", permission="deployments:read", answer=DiffView)
async def diff_releases(
    *,
    access: Granted,
    app: Ref,
    release: Id,
    against: Annotated[str, Query(min_length=1, max_length=64, description="Id, number, or as v7.")],
    project: Project = "",
) -> Response:
    """How a release differs from another. Values of variables are not shown."""

    def look(tx: Transaction, row: App) -> Answer:
        new, old = releases.find_release(tx, row, release), releases.find_release(tx, row, against)
        changes = plans.differences(
            plans.Content(old.config, old.image_digest), plans.Content(new.config, new.image_digest)
        )
        return body_answer(DiffView(from_release=old.number, to_release=new.number, changes=_changes(changes)))

    return await read(access, AppTarget(app, project), look)
