"""Where a resource lies, and how a request names it.

A name is an id, or a name looked up in the project that the request gives, else in the only project that the caller can
see. What the caller may not see is looked up like anything else and then refused by `authorization`, in the same words as
what is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from shellwego.core.apps import App
from shellwego.core.errors import MalformedError, NotFoundError
from shellwego.core.ids import is_id
from shellwego.core.images import Image
from shellwego.core.instances import Instance
from shellwego.core.joins import JoinToken, NodeAuthority, NodeKey
from shellwego.core.nodes import Node
from shellwego.core.secrets import Secret
from shellwego.core.securitygroups import SecurityGroup
from shellwego.core.tenancy import Organization, Principal, Project
from shellwego.core.volumes import Volume
from shellwego.core.webhooks import Webhook
from shellwego.ports.store import Transaction, eq

R_co = TypeVar("R_co", covariant=True)


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


IdentifiedT = TypeVar("IdentifiedT", bound=_Identified)


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


@dataclass(frozen=True, slots=True)
class Found(Generic[R_co]):
    resource: R_co
    scope: Scope
    id: str
    """For the audit record."""
    absent: NotFoundError | None
    """What the caller is told where he may not see it: that there is none, in his own words. None: that he may not, since
    it is the platform itself and everybody knows that there is one."""


class Target(Protocol[R_co]):
    """Names the resource of a request. `find` raises `NotFoundError`, or `MalformedError` where it names none."""

    def find(self, tx: Transaction, principal: Principal) -> Found[R_co]: ...


@dataclass(frozen=True, slots=True)
class SystemTarget:
    """The platform as a whole."""

    def find(self, tx: Transaction, principal: Principal) -> Found[None]:
        return Found(None, SYSTEM, "system", None)


@dataclass(frozen=True, slots=True)
class NodeTarget:
    """A node by id or name."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[Node]:
        if is_id("node", self.ref):
            node = tx.nodes.get(self.ref)
        else:
            node = next(iter(tx.nodes.select(eq("name", self.ref), limit=1)), None)
        if node is None:
            raise missing("node", self.ref)
        return Found(node, SYSTEM, node.id, missing("node", self.ref))


@dataclass(frozen=True, slots=True)
class JoinTokenTarget:
    """A join token by its id."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[JoinToken]:
        return _of_system("join token", self.ref, tx.join_tokens.get(self.ref))


@dataclass(frozen=True, slots=True)
class NodeKeyTarget:
    """The key of a node or edge, by its id."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[NodeKey]:
        return _of_system("node key", self.ref, tx.node_keys.get(self.ref))


@dataclass(frozen=True, slots=True)
class NodeAuthorityTarget:
    """An authority of the platform's nodes, by its id."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[NodeAuthority]:
        return _of_system("node authority", self.ref, tx.node_authorities.get(self.ref))


@dataclass(frozen=True, slots=True)
class ProjectTarget:
    """A project by id or name; empty: the only one that the caller can see."""

    ref: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[Project]:
        project = _named_project(tx, principal, self.ref) if self.ref else _only_project(tx, principal)
        return Found(project, project_scope(project), project.id, missing("project", self.ref))


@dataclass(frozen=True, slots=True)
class OrganizationTarget:
    """An organization by id or name; empty: the only one that the caller can see."""

    ref: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[Organization]:
        if not self.ref:
            only = _only_organization(tx, principal)
            return Found(only, Scope(only.id), only.id, missing("organization", ""))
        organization = tx.organizations.get(self.ref) or next(
            iter(tx.organizations.select(eq("name", self.ref), limit=1)), None
        )
        if organization is None:
            raise missing("organization", self.ref)
        return Found(organization, Scope(organization.id), organization.id, missing("organization", self.ref))


@dataclass(frozen=True, slots=True)
class AppTarget:
    """An app by id, or by name in a project."""

    ref: str
    project: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[App]:
        app = tx.apps.get(self.ref) if is_id("app", self.ref) else self._named(tx, principal)
        if app is None:
            raise missing("app", self.ref)
        return Found(app, app_scope(tx, app), app.id, missing("app", self.ref))

    def _named(self, tx: Transaction, principal: Principal) -> App | None:
        project = ProjectTarget(self.project).find(tx, principal).resource
        return next(iter(tx.apps.select(eq("project_id", project.id), eq("name", self.ref), limit=1)), None)


@dataclass(frozen=True, slots=True)
class ImageTarget:
    """An image by its id."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[Image]:
        image = tx.images.get(self.ref)
        project = tx.projects.get(image.project_id) if image else None
        if image is None or project is None:
            raise missing("image", self.ref)
        return Found(image, project_scope(project), image.id, missing("image", self.ref))


@dataclass(frozen=True, slots=True)
class SecretTarget:
    """A secret by id, or by name in a project."""

    ref: str
    project: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[Secret]:
        secret = tx.secrets.get(self.ref) if is_id("sec", self.ref) else self._named(tx, principal)
        project = tx.projects.get(secret.project_id) if secret else None
        if secret is None or project is None:
            raise missing("secret", self.ref)
        return Found(secret, project_scope(project), secret.id, missing("secret", self.ref))

    def _named(self, tx: Transaction, principal: Principal) -> Secret | None:
        project = ProjectTarget(self.project).find(tx, principal).resource
        return next(iter(tx.secrets.select(eq("project_id", project.id), eq("name", self.ref), limit=1)), None)


@dataclass(frozen=True, slots=True)
class GroupTarget:
    """A security group by id, or by name in a project."""

    ref: str
    project: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[SecurityGroup]:
        group = tx.security_groups.get(self.ref) if is_id("sgr", self.ref) else self._named(tx, principal)
        project = tx.projects.get(group.project_id) if group else None
        if group is None or project is None:
            raise missing("group", self.ref)
        return Found(group, project_scope(project), group.id, missing("group", self.ref))

    def _named(self, tx: Transaction, principal: Principal) -> SecurityGroup | None:
        project = ProjectTarget(self.project).find(tx, principal).resource
        rows = tx.security_groups.select(eq("project_id", project.id), eq("name", self.ref), limit=1)
        return next(iter(rows), None)


def project_of(tx: Transaction, project_id: str) -> Project:
    """The project in which something lies; raises `NotFoundError` where it is gone."""
    project = tx.projects.get(project_id)
    if project is None:
        raise missing("project", project_id)
    return project


@dataclass(frozen=True, slots=True)
class VolumeTarget:
    """A volume by id, or by name in a project."""

    ref: str
    project: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[Volume]:
        volume = tx.volumes.get(self.ref) if is_id("vol", self.ref) else self._named(tx, principal)
        project = tx.projects.get(volume.project_id) if volume else None
        if volume is None or project is None:
            raise missing("volume", self.ref)
        return Found(volume, project_scope(project), volume.id, missing("volume", self.ref))

    def _named(self, tx: Transaction, principal: Principal) -> Volume | None:
        project = ProjectTarget(self.project).find(tx, principal).resource
        return next(iter(tx.volumes.select(eq("project_id", project.id), eq("name", self.ref), limit=1)), None)


@dataclass(frozen=True, slots=True)
class InstanceTarget:
    """An instance of any app, by its id."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[Instance]:
        instance = tx.instances.get(self.ref)
        app = tx.apps.get(instance.app_id) if instance else None
        if instance is None or app is None:
            raise missing("instance", self.ref)
        return Found(instance, app_scope(tx, app), instance.id, missing("instance", self.ref))


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """A webhook by its id."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[Webhook]:
        webhook = tx.webhooks.get(self.ref)
        if webhook is None:
            raise missing("webhook", self.ref)
        scope = Scope(webhook.organization_id, webhook.project_id)
        return Found(webhook, scope, webhook.id, missing("webhook", self.ref))


def _of_system(kind: str, ref: str, found: IdentifiedT | None) -> Found[IdentifiedT]:
    """A thing of the platform itself that is looked up by its id."""
    if found is None:
        raise missing(kind, ref)
    return Found(found, SYSTEM, found.id, missing(kind, ref))


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
        for project in _projects_below(tx, scope_id, limit):
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


def _projects_below(tx: Transaction, scope_id: str, limit: int) -> list[Project]:
    if not scope_id:
        return tx.projects.select(limit=limit)
    if is_id("org", scope_id):
        return tx.projects.select(eq("organization_id", scope_id), limit=limit)
    scope = scope_at(tx, scope_id)
    project = tx.projects.get(scope.project_id) if scope else None
    return [project] if project else []


def _only_organization(tx: Transaction, principal: Principal) -> Organization:
    everywhere = "" in reach(tx, principal)
    found = tx.organizations.select(limit=2) if everywhere else organizations_of(tx, principal)
    if len(found) == 1:
        return found[0]
    raise MalformedError(
        "organization-needed",
        "the request does not say which organization it is about",
        resolution="Give the organization's id or name.",
    )


def _only_project(tx: Transaction, principal: Principal) -> Project:
    projects = visible_projects(tx, principal, limit=2)
    if len(projects) == 1:
        return projects[0]
    raise MalformedError(
        "project-needed",
        "the request does not say which project it is about",
        resolution="Add ?project= with the project's id or name.",
    )


def _named_project(tx: Transaction, principal: Principal, ref: str) -> Project:
    if is_id("prj", ref):
        project = tx.projects.get(ref)
        if project is None:
            raise missing("project", ref)
        return project
    found = {project.id: project for scope_id in reach(tx, principal) for project in _projects_named(tx, scope_id, ref)}
    if not found:
        raise missing("project", ref)
    if len(found) > 1:
        raise MalformedError(
            "project-ambiguous", f"several organizations have a project “{ref[:80]}”", resolution="Give its id."
        )
    return next(iter(found.values()))


def _projects_named(tx: Transaction, scope_id: str, name: str) -> list[Project]:
    if not scope_id:
        return tx.projects.select(eq("name", name), limit=2)
    if is_id("org", scope_id):
        return tx.projects.select(eq("organization_id", scope_id), eq("name", name), limit=1)
    return [project for project in _projects_below(tx, scope_id, limit=1) if project.name == name]
