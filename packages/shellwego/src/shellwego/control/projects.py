"""Projects: subdivisions of an organization, each with a network of its own. One is deleted by whoever may, once
nothing is in it that nobody could bring back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.grants import forget_grants
from shellwego.control.images import delete_image
from shellwego.control.networks import next_number
from shellwego.control.pages import Page, PageRequest, page
from shellwego.control.quotas import charge_organization, forget_quota
from shellwego.control.scopes import project_scope, visible_projects
from shellwego.control.securitygroups import forget_groups
from shellwego.control.targets import Found, OrganizationTarget
from shellwego.control.unit import Unit
from shellwego.control.vaults import forget_vault
from shellwego.control.webhooks import delete_webhook
from shellwego.core import hostnames, iam
from shellwego.core.errors import ConflictError, FieldError
from shellwego.core.tenancy import Organization, Principal, Project
from shellwego.ports.store import Transaction, eq, within

_MOST_SEEN = 10_000


def create_project(unit: Unit, organization: Organization, name: str) -> Project:
    """Make a project.

    Raises:
        InvalidError: the name is none.
        ConflictError: the organization has a project of this name.
        QuotaError: it has as many as it may.
    """
    _check_name(unit.tx, organization.id, name)
    charge_organization(unit, organization, {"projects": 1})
    return add_project(unit, organization, name)


def add_project(unit: Unit, organization: Organization, name: str) -> Project:
    """Store a project whose name is known to be free."""
    first = not unit.tx.projects.select(eq("organization_id", organization.id), limit=1)
    project = unit.tx.projects.insert(
        Project(
            id=unit.new_id("prj"),
            organization_id=organization.id,
            name=name,
            network_id=unit.new_id("net"),
            network_number=next_number(unit),
            first=first,
            created_at=unit.now(),
        )
    )
    _tell(unit, "project.created", project)
    return project


def list_projects(tx: Transaction, principal: Principal, request: PageRequest, organization_id: str) -> Page[Project]:
    """Those that the caller may see, of one organization or (empty) of all."""
    conditions = (eq("organization_id", organization_id),) if organization_id else ()
    if iam.allowed(principal, "projects:read", ("", *filter(None, [organization_id]))):
        return page(tx.projects, request, *conditions)
    seen = [
        project.id
        for project in visible_projects(tx, principal, _MOST_SEEN)
        if iam.allowed(principal, "projects:read", project_scope(project).chain)
    ]
    return page(tx.projects, request, *conditions, within("id", seen))


@dataclass(frozen=True, slots=True)
class OrganizationOfProjects:
    """An organization by id or name, to whoever may read it or one of its projects: `list_projects` shows him no others."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[Organization]:
        found = OrganizationTarget(self.ref).find(tx, principal)
        if iam.allowed(principal, "projects:read", found.scope.chain):
            return found
        for project in visible_projects(tx, principal, _MOST_SEEN):
            scope = project_scope(project)
            if project.organization_id == found.id and iam.allowed(principal, "projects:read", scope.chain):
                return replace(found, scope=scope)
        return found


def rename_project(unit: Unit, project: Project, name: str) -> Project:
    """Give it another name; ids, and hostnames that apps have, stay. Raises as `create_project`."""
    if name == project.name:
        return project
    _check_name(unit.tx, project.organization_id, name)
    renamed = unit.tx.projects.update(replace(project, name=name))
    _tell(unit, "project.renamed", renamed)
    return renamed


def delete_project(unit: Unit, project: Project) -> None:
    """Remove a project with its images, webhooks, security groups, grants and quotas.

    Raises:
        ConflictError: it has apps, or secrets or volumes, which nothing would bring back.
    """
    if unit.tx.apps.select(eq("project_id", project.id), limit=1):
        raise ConflictError(
            "project-not-empty",
            f"the project {project.name} has apps",
            resolution="Destroy its apps first, and wait until they are gone.",
        )
    if unit.tx.secrets.select(eq("project_id", project.id), limit=1):
        raise ConflictError(
            "project-not-empty",
            f"the project {project.name} has secrets",
            resolution="Remove them first: swg secrets rm",
        )
    if unit.tx.volumes.select(eq("project_id", project.id), limit=1):
        raise ConflictError(
            "project-not-empty",
            f"the project {project.name} has volumes",
            resolution="Delete them first: swg volumes rm",
        )
    for webhook in unit.tx.webhooks.select(eq("project_id", project.id)):
        delete_webhook(unit, webhook)
    for image in unit.tx.images.select(eq("project_id", project.id)):
        delete_image(unit, image)
    forget_groups(unit, project.id)
    forget_vault(unit, project)
    forget_grants(unit, project.id)
    forget_quota(unit, project.id)
    unit.tx.projects.delete(project.id)
    _tell(unit, "project.deleted", project)


def _check_name(tx: Transaction, organization_id: str, name: str) -> None:
    hostnames.check_name(name)
    if tx.projects.select(eq("organization_id", organization_id), eq("name", name), limit=1):
        fault = FieldError("name", "already-exists", "this name is in use in the organization")
        raise ConflictError("project-exists", f"the organization has a project “{name}” already", errors=(fault,))


def _tell(unit: Unit, type_: str, project: Project) -> None:
    unit.emit(
        type_,
        project.id,
        organization_id=project.organization_id,
        project_id=project.id,
        data={"name": project.name},
    )
