"""How a request names the resource it is about.

A name is an id, or a name looked up in the project that the request gives, else in the only project that the caller can
see. What the caller may not see is looked up like anything else and then refused by `authorization`, in the same words as
what is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from shellwego.control.scopes import (
    SYSTEM,
    Scope,
    app_scope,
    missing,
    organizations_of,
    project_scope,
    projects_below,
    reach,
    visible_projects,
)
from shellwego.core import iam
from shellwego.core.apps import App
from shellwego.core.errors import MalformedError, NotFoundError, ShellWeGoError
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
from shellwego.ports.store import Table, Transaction, eq

R_co = TypeVar("R_co", covariant=True)


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


class _InProject(_Identified, Protocol):
    @property
    def project_id(self) -> str: ...


IdentifiedT = TypeVar("IdentifiedT", bound=_Identified)
InProjectT = TypeVar("InProjectT", bound=_InProject)


@dataclass(frozen=True, slots=True)
class Found(Generic[R_co]):
    resource: R_co
    scope: Scope
    id: str
    """For the audit record."""
    absent: NotFoundError | None
    """What the caller is told where he may not see it: that there is none, in his own words. None: that he may not, since
    it is the platform itself and everybody knows that there is one."""


class RefusedError(Exception):
    """Carries the outward error of a denial past the transaction that it undoes, to where its record is written."""

    def __init__(self, outward: ShellWeGoError, resource: str, scope: Scope) -> None:
        super().__init__(outward.message)
        self.outward = outward
        self.resource = resource
        self.scope = scope


class Target(Protocol[R_co]):
    """Names the resource of a request. `find` raises `NotFoundError`, or `MalformedError` where it names none; or
    `RefusedError`, see `unguessed`."""

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
            raise unguessed("node", "node", self.ref, principal)
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
            raise unguessed("organization", "org", self.ref, principal)
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
        return _named_in(ProjectTarget(self.project).find(tx, principal).resource, tx.apps, self.ref)


@dataclass(frozen=True, slots=True)
class ImageTarget:
    """An image by its id."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[Image]:
        return _of_project(tx, "image", self.ref, tx.images.get(self.ref))


@dataclass(frozen=True, slots=True)
class SecretTarget:
    """A secret by id, or by name in a project."""

    ref: str
    project: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[Secret]:
        row = tx.secrets.get(self.ref) if is_id("sec", self.ref) else self._named(tx, principal)
        return _of_project(tx, "secret", self.ref, row)

    def _named(self, tx: Transaction, principal: Principal) -> Secret | None:
        return _named_in(ProjectTarget(self.project).find(tx, principal).resource, tx.secrets, self.ref)


@dataclass(frozen=True, slots=True)
class GroupTarget:
    """A security group by id, or by name in a project."""

    ref: str
    project: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[SecurityGroup]:
        row = tx.security_groups.get(self.ref) if is_id("sgr", self.ref) else self._named(tx, principal)
        return _of_project(tx, "group", self.ref, row)

    def _named(self, tx: Transaction, principal: Principal) -> SecurityGroup | None:
        return _named_in(ProjectTarget(self.project).find(tx, principal).resource, tx.security_groups, self.ref)


@dataclass(frozen=True, slots=True)
class VolumeTarget:
    """A volume by id, or by name in a project."""

    ref: str
    project: str = ""

    def find(self, tx: Transaction, principal: Principal) -> Found[Volume]:
        row = tx.volumes.get(self.ref) if is_id("vol", self.ref) else self._named(tx, principal)
        return _of_project(tx, "volume", self.ref, row)

    def _named(self, tx: Transaction, principal: Principal) -> Volume | None:
        return _named_in(ProjectTarget(self.project).find(tx, principal).resource, tx.volumes, self.ref)


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


def unguessed(kind: str, prefix: str, ref: str, principal: Principal) -> NotFoundError | RefusedError:
    """What to raise where nothing has this id or name. A name could be guessed: who may not see all of the kind is refused
    as for somebody else's, with a record of the platform, or he would know by the time that the answer takes."""
    error = missing(kind, ref)
    if is_id(prefix, ref) or iam.allowed(principal, f"{kind}s:read", SYSTEM.chain):
        return error
    return RefusedError(error, kind, SYSTEM)


def _of_system(kind: str, ref: str, found: IdentifiedT | None) -> Found[IdentifiedT]:
    """A thing of the platform itself that is looked up by its id."""
    if found is None:
        raise missing(kind, ref)
    return Found(found, SYSTEM, found.id, missing(kind, ref))


def _of_project(tx: Transaction, kind: str, ref: str, found: InProjectT | None) -> Found[InProjectT]:
    """A thing that lies in a project."""
    project = tx.projects.get(found.project_id) if found else None
    if found is None or project is None:
        raise missing(kind, ref)
    return Found(found, project_scope(project), found.id, missing(kind, ref))


def _named_in(project: Project, rows: Table[InProjectT], name: str) -> InProjectT | None:
    return next(iter(rows.select(eq("project_id", project.id), eq("name", name), limit=1)), None)


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
    return [project for project in projects_below(tx, scope_id, limit=1) if project.name == name]
