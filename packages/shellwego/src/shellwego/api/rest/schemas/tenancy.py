"""Organizations, projects, members, service accounts, roles, grants, quotas."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, Pagination, View, when, when_or_none
from shellwego.control.grants import SYSTEM_NAME
from shellwego.control.members import Member
from shellwego.core.quota import COUNTED, Limits
from shellwego.core.tenancy import Grant, Organization, Project, Role, ServiceAccount, Token, TokenKind

Label = Annotated[str, Field(min_length=1, max_length=80)]
"""A name that is checked by its use case, which says what a name may be."""
Reference = Annotated[str, Field(min_length=1, max_length=255)]
_NINETY_DAYS = 90 * 24 * 3600


class OrganizationCreate(Body):
    name: Label


class OrganizationPatch(Body):
    name: Label


class OrganizationView(View):
    id: str
    name: str
    plan: str
    created_at: datetime


class OrganizationList(View):
    data: list[OrganizationView]
    pagination: Pagination


class ProjectCreate(Body):
    """A project; `organization` is an id or a name, and needed where the token sees several."""

    name: Label
    organization: Annotated[str, Field(max_length=255)] = ""


class ProjectPatch(Body):
    name: Label


class ProjectView(View):
    id: str
    organization_id: str
    name: str
    created_at: datetime


class ProjectList(View):
    data: list[ProjectView]
    pagination: Pagination


class MemberPatch(Body):
    """`role` is `owner`, `admin`, `developer`, `viewer`, `billing`, or the name or id of one of the organization's own."""

    role: Label


class MemberView(View):
    """A user with a role on the organization. `since` is when he got a role there."""

    user_id: str
    email: str
    role: str
    grant_id: str
    since: datetime


class MemberList(View):
    data: list[MemberView]
    pagination: Pagination


class ServiceAccountCreate(Body):
    name: Label
    description: Annotated[str, Field(max_length=200)] = ""


class ServiceAccountPatch(Body):
    name: Label | None = None
    description: Annotated[str, Field(max_length=200)] | None = None


class ServiceAccountView(View):
    id: str
    organization_id: str
    name: str
    description: str
    created_at: datetime


class ServiceAccountList(View):
    data: list[ServiceAccountView]
    pagination: Pagination


class ServiceTokenCreate(Body):
    """A token for a service account. Without scopes it may whatever the account may."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[list[Label], Field(max_length=64)] = Field(default_factory=list)
    expires_in: Annotated[int, Field(ge=60, le=_NINETY_DAYS)] = _NINETY_DAYS
    """Seconds."""


class ServiceTokenView(View):
    id: str
    kind: TokenKind
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class ServiceTokenList(View):
    data: list[ServiceTokenView]
    pagination: Pagination


class NewServiceTokenView(ServiceTokenView):
    """A token, with its secret for the only time."""

    secret: str


class RoleCreate(Body):
    """A role of the organization's own, made of single permissions such as `apps:read`."""

    name: Label
    permissions: Annotated[list[Label], Field(min_length=1, max_length=200)]


class RolePatch(Body):
    name: Label | None = None
    permissions: Annotated[list[Label], Field(min_length=1, max_length=200)] | None = None


class RoleView(View):
    id: str
    organization_id: str
    name: str
    permissions: list[str]
    created_at: datetime


class RoleList(View):
    """The organization's own roles; `everywhere` are those that every organization has, with their permissions."""

    data: list[RoleView]
    everywhere: dict[str, list[str]]
    pagination: Pagination


class GrantCreate(Body):
    """A role on a scope. `scope` is the id of an organization, a project or an app, or `system`; `principal` is a member by
    id or email, a service account by id, or, for who runs the platform, any user by id: no address is proved."""

    scope: Reference
    principal: Reference
    role: Label


class GrantPatch(Body):
    role: Label


class ScopedGrantView(View):
    """Who has which role where. `scope` is as in the request; the role holds there and on all below."""

    id: str
    scope: str
    principal_id: str
    role: str
    created_at: datetime


class GrantList(View):
    data: list[ScopedGrantView]
    pagination: Pagination


class LimitView(View):
    """What may be had, and what is there. `limit` is null where there is none; `unit` is empty for what is counted."""

    name: str
    unit: str
    limit: int | None
    used: int
    """Of `priority`, the highest that any app asks for."""


class QuotasPut(Body):
    """Limits by name; null lifts one. What is left out is as the plan says."""

    limits: Annotated[dict[Label, int | None], Field(max_length=16)]


class OrganizationQuotasPut(QuotasPut):
    plan: Label | None = None


class QuotasView(View):
    """What holds for a scope. `plan` is the organization's; `set` names what was set apart from it."""

    scope: str
    plan: str
    data: list[LimitView]
    set: list[str]


class ProjectUsageView(View):
    project_id: str
    name: str
    used: dict[str, int]


class OrganizationUsageView(View):
    """What is wanted now: in all, and by project. `memory` is in bytes, `cpu` in thousandths of a core."""

    organization_id: str
    used: dict[str, int]
    projects: list[ProjectUsageView]


def organization_view(organization: Organization) -> OrganizationView:
    return OrganizationView(
        id=organization.id, name=organization.name, plan=organization.plan, created_at=when(organization.created_at)
    )


def project_view(project: Project) -> ProjectView:
    return ProjectView(
        id=project.id,
        organization_id=project.organization_id,
        name=project.name,
        created_at=when(project.created_at),
    )


def member_view(member: Member, role: str) -> MemberView:
    return MemberView(
        user_id=member.user.id,
        email=member.user.email,
        role=role,
        grant_id=member.grant.id,
        since=when(member.grant.created_at),
    )


def service_account_view(account: ServiceAccount) -> ServiceAccountView:
    return ServiceAccountView(
        id=account.id,
        organization_id=account.organization_id,
        name=account.name,
        description=account.description,
        created_at=when(account.created_at),
    )


def service_token_view(token: Token) -> ServiceTokenView:
    return ServiceTokenView(
        id=token.id,
        kind=token.kind,
        name=token.name,
        scopes=list(token.scopes),
        created_at=when(token.created_at),
        expires_at=when_or_none(token.expires_at),
        revoked_at=when_or_none(token.revoked_at),
    )


def new_service_token_view(token: Token, secret: str) -> NewServiceTokenView:
    return NewServiceTokenView(secret=secret, **service_token_view(token).model_dump())


def role_view(role: Role) -> RoleView:
    return RoleView(
        id=role.id,
        organization_id=role.organization_id,
        name=role.name,
        permissions=list(role.permissions),
        created_at=when(role.created_at),
    )


def grant_view(grant: Grant, role: str) -> ScopedGrantView:
    return ScopedGrantView(
        id=grant.id,
        scope=grant.scope_id or SYSTEM_NAME,
        principal_id=grant.principal_id,
        role=role,
        created_at=when(grant.created_at),
    )


def limit_views(limits: Limits, used: Mapping[str, int]) -> list[LimitView]:
    return [
        LimitView(name=name, unit=COUNTED.get(name, ""), limit=limit, used=used.get(name, 0))
        for name, limit in limits.items()
    ]
