"""Who may do what: custom roles of an organization, and grants on any scope."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing
from shellwego.api.rest.routes.common import Id, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.tenancy import (
    GrantCreate,
    GrantList,
    GrantPatch,
    RoleCreate,
    RoleList,
    RolePatch,
    RoleView,
    ScopedGrantView,
    grant_view,
    role_view,
)
from shellwego.control import grants, roles
from shellwego.control.grants import GrantTarget, ScopeIdTarget
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.roles import find_role, role_name
from shellwego.control.scopes import Scope
from shellwego.control.targets import OrganizationTarget
from shellwego.control.unit import Unit
from shellwego.core.iam import ROLES
from shellwego.core.tenancy import Grant, Organization, Role
from shellwego.ports.store import Transaction, eq

router = resource_router("access")
_ROLE_SORTS: dict[str, type[str] | type[float]] = {"name": str, "id": str}
_GRANT_SORTS: dict[str, type[str] | type[float]] = {"id": str}
_ROLES = "/organizations/{organization}/roles"


@operation(router, "POST", _ROLES, permission="roles:write", answer=RoleView, status=201)
async def create_role(*, access: Granted, organization: Ref, body: RoleCreate) -> Response:
    """Make a role of permissions, none of which the caller lacks himself."""

    def work(unit: Unit, row: Organization) -> Answer:
        made = roles.create_role(unit, access.principal, row, body.name, body.permissions)
        return body_answer(role_view(made), 201, made.version)

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "GET", _ROLES, permission="roles:read", answer=RoleList)
async def list_roles(*, access: Granted, listing: Listing, organization: Ref) -> Response:
    """The organization's own roles, and those that every organization has."""
    request = listing.page(_ROLE_SORTS, "name")
    everywhere = {name: sorted(permissions) for name, permissions in ROLES.items()}

    def look(tx: Transaction, row: Organization) -> Answer:
        found = page(tx.roles, request, eq("organization_id", row.id))
        views = [role_view(role) for role in found.items]
        return body_answer(RoleList(data=views, everywhere=everywhere, pagination=pagination(found)))

    return await read(access, OrganizationTarget(organization), look)


@operation(router, "GET", f"{_ROLES}/{{role}}", permission="roles:read", answer=RoleView)
async def get_role(*, access: Granted, organization: Ref, role: Ref) -> Response:
    """One of the organization's own roles, by id or name."""
    return await read(access, OrganizationTarget(organization), lambda tx, row: _show_role(find_role(tx, row.id, role)))


@operation(router, "PATCH", f"{_ROLES}/{{role}}", permission="roles:write", answer=RoleView, refusals=(412,))
async def change_role(*, access: Granted, match: IfMatch, organization: Ref, role: Ref, body: RolePatch) -> Response:
    """Rename a role, or have it hold other permissions; whoever has it has them within a second."""

    def work(unit: Unit, row: Organization) -> Answer:
        found = find_role(unit.tx, row.id, role)
        match.check(found.version)
        changed = roles.change_role(unit, access.principal, row, found, name=body.name, permissions=body.permissions)
        return _show_role(changed)

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "DELETE", f"{_ROLES}/{{role}}", permission="roles:write", answer=None, status=204)
async def delete_role(*, access: Granted, organization: Ref, role: Ref) -> Response:
    """Remove a role that nobody has."""

    def work(unit: Unit, row: Organization) -> Answer:
        roles.delete_role(unit, access.principal, find_role(unit.tx, row.id, role))
        return Answer(204, "")

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "POST", "/grants", permission="grants:write", answer=ScopedGrantView, status=201)
async def create_grant(*, access: Granted, body: GrantCreate) -> Response:
    """Give a member or service account a role on a scope; none that holds what the caller lacks there."""

    def work(unit: Unit, row: Scope) -> Answer:
        made = grants.create_grant(unit, access.principal, row, body.principal, body.role)
        return _show_grant(unit.tx, made, 201)

    return await write(access, ScopeIdTarget(body.scope), work)


@operation(router, "GET", "/grants", permission="grants:read", answer=GrantList)
async def list_grants(
    *,
    access: Granted,
    listing: Listing,
    scope: Annotated[str, Query(min_length=1, max_length=64, description="An id, or system.")],
    principal: Annotated[str | None, Query(alias="filter[principal]", max_length=64)] = None,
) -> Response:
    """What was granted on a scope itself. What was granted above it holds there, too."""
    request = listing.page(_GRANT_SORTS, "id")

    def look(tx: Transaction, row: Scope) -> Answer:
        whose = () if principal is None else (eq("principal_id", principal),)
        found = page(tx.grants, request, eq("scope_id", row.id), *whose)
        views = [grant_view(grant, role_name(tx, grant.role)) for grant in found.items]
        return body_answer(GrantList(data=views, pagination=pagination(found)))

    return await read(access, ScopeIdTarget(scope), look)


@operation(router, "GET", "/grants/{grant}", permission="grants:read", answer=ScopedGrantView)
async def get_grant(*, access: Granted, grant: Id) -> Response:
    """One grant."""
    return await read(access, GrantTarget(grant), _show_grant)


@operation(router, "PATCH", "/grants/{grant}", permission="grants:write", answer=ScopedGrantView, refusals=(412,))
async def change_grant(*, access: Granted, match: IfMatch, grant: Id, body: GrantPatch) -> Response:
    """Give another role in place of this one."""

    def work(unit: Unit, row: Grant) -> Answer:
        match.check(row.version)
        return _show_grant(unit.tx, grants.change_grant(unit, access.principal, row, body.role))

    return await write(access, GrantTarget(grant), work)


@operation(router, "DELETE", "/grants/{grant}", permission="grants:write", answer=None, status=204)
async def delete_grant(*, access: Granted, grant: Id) -> Response:
    """Take a role away, within a second. The last owner of an organization stays."""

    def work(unit: Unit, row: Grant) -> Answer:
        grants.delete_grant(unit, access.principal, row)
        return Answer(204, "")

    return await write(access, GrantTarget(grant), work)


def _show_role(role: Role) -> Answer:
    return body_answer(role_view(role), version=role.version)


def _show_grant(tx: Transaction, grant: Grant, status: int = 200) -> Answer:
    return body_answer(grant_view(grant, role_name(tx, grant.role)), status, grant.version)
