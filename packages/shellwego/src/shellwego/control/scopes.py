"""Where a resource lies (system, organization, project, app), and what of it a caller's grants reach."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.core.apps import App
from shellwego.core.errors import NotFoundError
from shellwego.core.ids import is_id
from shellwego.core.tenancy import Organization, Principal, Project
from shellwego.ports.store import Transaction, eq


@dataclass(frozen=True, slots=True)
class Scope:
    """Organization, project and app that a resource belongs to; all empty: the system."""

    organization_id: str = ""
    project_id: str = ""
    app_id: str = ""

    @property
    def chain(self) -> tuple[str, ...]:
        """The scopes on which a grant would hold here, from the system downwards."""
        return ("", *filter(None, (self.organization_id, self.project_id, self.app_id)))

    @property
    def id(self) -> str:
        """What a grant on this very scope names."""
        return self.chain[-1]


SYSTEM = Scope()


def project_of(tx: Transaction, project_id: str) -> Project:
    """The project in which something lies; raises `NotFoundError` where it is gone."""
    project = tx.projects.get(project_id)
    if project is None:
        raise missing("project", project_id)
    return project


def organization_of(tx: Transaction, project_id: str) -> str:
    """The id of the organization that a project is of; empty where the project is gone."""
    project = tx.projects.get(project_id)
    return project.organization_id if project else ""


def missing(kind: str, ref: str) -> NotFoundError:
    """The one wording for what is not there and for what is somebody else's."""
    return NotFoundError(f"{kind.replace(' ', '-')}-not-found", f"there is no {kind} “{ref[:200]}”")


def project_scope(project: Project) -> Scope:
    return Scope(project.organization_id, project.id)


def app_scope(tx: Transaction, app: App) -> Scope:
    """Where the app lies."""
    project = tx.projects.get(app.project_id)
    if project is None:
        raise missing("app", app.id)
    return replace(project_scope(project), app_id=app.id)


def scope_at(tx: Transaction, scope_id: str) -> Scope | None:
    """The scope that an id names, of an organization, a project or an app; empty: the system; None where it is gone."""
    if not scope_id:
        return SYSTEM
    if is_id("org", scope_id):
        return Scope(scope_id) if tx.organizations.get(scope_id) else None
    if is_id("app", scope_id):
        app = tx.apps.get(scope_id)
        return app_scope(tx, app) if app else None
    project = tx.projects.get(scope_id)
    return project_scope(project) if project else None


def chain_of(tx: Transaction, scope_id: str) -> tuple[str, ...]:
    """The scopes from the system down to this one; empty where there is none such."""
    scope = scope_at(tx, scope_id)
    return scope.chain if scope else ()


def organizations_of(tx: Transaction, principal: Principal) -> list[Organization]:
    """The organizations in which the caller holds a grant, on whatever; those of the token's resources if it is bound."""
    scopes = [scope for scope_id in reach(tx, principal) if (scope := scope_at(tx, scope_id))]
    ids = sorted({scope.organization_id for scope in scopes if scope.organization_id})
    return [organization for id_ in ids if (organization := tx.organizations.get(id_))]


def visible_projects(tx: Transaction, principal: Principal, limit: int) -> list[Project]:
    """Projects on which, above which, or below which the caller holds a grant; at most `limit`."""
    found: dict[str, Project] = {}
    for scope_id in reach(tx, principal):
        for project in projects_below(tx, scope_id, limit):
            found[project.id] = project
    return sorted(found.values(), key=lambda project: project.id)[:limit]


def reach(tx: Transaction, principal: Principal) -> list[str]:
    """The scopes on which the caller holds a grant, cut down to what the token is narrowed to; each holds below it."""
    granted = [grant.scope_id for grant in principal.grants]
    if not principal.resources:
        return granted
    cut = [(scope_id, resource) for scope_id in granted for resource in principal.resources]
    return [lower for scope_id, resource in cut if (lower := _lower(tx, scope_id, resource)) is not None]


def _lower(tx: Transaction, one: str, other: str) -> str | None:
    """Of two scopes that lie in one chain the one further down; None where neither lies below the other."""
    if one in chain_of(tx, other):
        return other
    return one if other in chain_of(tx, one) else None


def projects_below(tx: Transaction, scope_id: str, limit: int) -> list[Project]:
    """Projects in which a grant on this scope holds anything; at most `limit`."""
    if not scope_id:
        return tx.projects.select(limit=limit)
    if is_id("org", scope_id):
        return tx.projects.select(eq("organization_id", scope_id), limit=limit)
    scope = scope_at(tx, scope_id)
    project = tx.projects.get(scope.project_id) if scope else None
    return [project] if project else []
