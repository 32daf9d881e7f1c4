"""Projects, and how much an organization and its projects may have and do have."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing
from shellwego.api.rest.lists import Organization as InOrganization
from shellwego.api.rest.routes.common import Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.tenancy import (
    OrganizationQuotasPut,
    OrganizationUsageView,
    ProjectCreate,
    ProjectList,
    ProjectPatch,
    ProjectUsageView,
    ProjectView,
    QuotasPut,
    QuotasView,
    limit_views,
    project_view,
)
from shellwego.control import projects, quotas
from shellwego.control.idempotency import Answer
from shellwego.control.targets import OrganizationTarget, ProjectTarget
from shellwego.control.unit import Unit
from shellwego.core.quota import OF_PROJECTS
from shellwego.core.tenancy import Organization, Project
from shellwego.ports.store import Transaction, eq

router = resource_router("projects")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "id": str}


@operation(router, "POST", "/projects", permission="projects:write", answer=ProjectView, status=201)
async def create_project(*, access: Granted, body: ProjectCreate) -> Response:
    """Make a project in an organization."""

    def work(unit: Unit, row: Organization) -> Answer:
        made = projects.create_project(unit, row, body.name)
        return body_answer(project_view(made), 201, made.version)

    return await write(access, OrganizationTarget(body.organization), work)


@operation(router, "GET", "/projects", permission="projects:read", answer=ProjectList)
async def list_projects(*, access: Granted, listing: Listing, organization: InOrganization = "") -> Response:
    """The projects within the caller's sight, of one organization or of all."""
    request = listing.page(_SORTS, "name")

    def look(tx: Transaction, organization_id: str) -> Answer:
        found = projects.list_projects(tx, access.principal, request, organization_id)
        views = [project_view(project) for project in found.items]
        return body_answer(ProjectList(data=views, pagination=pagination(found)))

    if organization:
        return await read(access, projects.OrganizationOfProjects(organization), lambda tx, row: look(tx, row.id))
    return respond(await access.own(lambda unit: look(unit.tx, "")))


@operation(router, "GET", "/projects/{project}", permission="projects:read", answer=ProjectView)
async def get_project(*, access: Granted, project: Ref) -> Response:
    """One project."""
    return await read(access, ProjectTarget(project), lambda tx, row: _show(row))


@operation(router, "PATCH", "/projects/{project}", permission="projects:write", answer=ProjectView, refusals=(412,))
async def rename_project(*, access: Granted, match: IfMatch, project: Ref, body: ProjectPatch) -> Response:
    """Give a project another name. Hostnames that its apps have stay."""

    def work(unit: Unit, row: Project) -> Answer:
        match.check(row.version)
        return _show(projects.rename_project(unit, row, body.name))

    return await write(access, ProjectTarget(project), work)


@operation(
    router, "DELETE", "/projects/{project}", permission="projects:write", answer=None, status=204, refusals=(412,)
)
async def delete_project(*, access: Granted, match: IfMatch, project: Ref) -> Response:
    """Remove a project that has no apps, with its images, grants and quotas."""

    def work(unit: Unit, row: Project) -> Answer:
        match.check(row.version)
        projects.delete_project(unit, row)
        return Answer(204, "")

    return await write(access, ProjectTarget(project), work)


@operation(router, "GET", "/organizations/{organization}/quotas", permission="quotas:read", answer=QuotasView)
async def get_organization_quotas(*, access: Granted, organization: Ref) -> Response:
    """What an organization may have, by its plan and by what was set, and what it has."""
    return await read(access, OrganizationTarget(organization), _organization_quotas)


@operation(router, "PUT", "/organizations/{organization}/quotas", permission="quotas:write", answer=QuotasView)
async def set_organization_quotas(*, access: Granted, organization: Ref, body: OrganizationQuotasPut) -> Response:
    """Set an organization's plan, and the limits that differ from it, in place of those set before. For whoever runs the
    platform."""

    def work(unit: Unit, row: Organization) -> Answer:
        return _organization_quotas(unit.tx, quotas.set_organization_quota(unit, row, body.plan, body.limits))

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "GET", "/projects/{project}/quotas", permission="projects:read", answer=QuotasView)
async def get_project_quotas(*, access: Granted, project: Ref) -> Response:
    """What a project may have within its organization, and what it has."""
    return await read(access, ProjectTarget(project), _project_quotas)


@operation(router, "PUT", "/projects/{project}/quotas", permission="projects:limit", answer=QuotasView)
async def set_project_quotas(*, access: Granted, project: Ref, body: QuotasPut) -> Response:
    """Set the limits of a project, in place of those set before."""

    def work(unit: Unit, row: Project) -> Answer:
        quotas.set_project_quota(unit, row, body.limits)
        return _project_quotas(unit.tx, row)

    return await write(access, ProjectTarget(project), work)


@operation(router, "GET", "/organizations/{organization}/usage", permission="usage:read", answer=OrganizationUsageView)
async def get_organization_usage(*, access: Granted, organization: Ref) -> Response:
    """What an organization has now, in all and by project: what is wanted, which is what its quotas count."""

    def look(tx: Transaction, row: Organization) -> Answer:
        rows = tx.projects.select(eq("organization_id", row.id))
        return body_answer(
            OrganizationUsageView(
                organization_id=row.id,
                used=dict(quotas.used(tx, quotas.of_organization(tx, row))),
                projects=[_project_usage(tx, project) for project in rows],
            )
        )

    return await read(access, OrganizationTarget(organization), look)


def _project_usage(tx: Transaction, project: Project) -> ProjectUsageView:
    counted = quotas.used(tx, quotas.of_project(tx, project), OF_PROJECTS)
    return ProjectUsageView(project_id=project.id, name=project.name, used={n: counted[n] for n in OF_PROJECTS})


def _show(project: Project) -> Answer:
    return body_answer(project_view(project), version=project.version)


def _organization_quotas(tx: Transaction, organization: Organization) -> Answer:
    return _quotas(tx, organization.id, organization.plan, quotas.of_organization(tx, organization))


def _project_quotas(tx: Transaction, project: Project) -> Answer:
    organization = tx.organizations.get(project.organization_id)
    return _quotas(tx, project.id, organization.plan if organization else "", quotas.of_project(tx, project))


def _quotas(tx: Transaction, scope_id: str, plan: str, holding: quotas.Holding) -> Answer:
    stored = tx.quotas.get(scope_id)
    used = quotas.used(tx, holding, holding.limits)
    return body_answer(
        QuotasView(
            scope=scope_id,
            plan=plan,
            data=limit_views(holding.limits, used),
            set=sorted(stored.limits) if stored else [],
        )
    )
