"""Organizations and their members."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing
from shellwego.api.rest.routes.common import Here, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.tenancy import (
    MemberList,
    MemberPatch,
    MemberView,
    OrganizationCreate,
    OrganizationList,
    OrganizationPatch,
    OrganizationView,
    member_view,
    organization_view,
)
from shellwego.control import members, organizations
from shellwego.control.idempotency import Answer
from shellwego.control.members import Member
from shellwego.control.roles import role_name
from shellwego.control.scopes import SYSTEM
from shellwego.control.targets import OrganizationTarget, SystemTarget
from shellwego.control.unit import Unit
from shellwego.core.tenancy import Organization
from shellwego.ports.store import Transaction

router = resource_router("organizations")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "id": str}
_MEMBER_SORTS: dict[str, type[str] | type[float]] = {"id": str}


@operation(router, "POST", "/organizations", permission="organizations:create", answer=OrganizationView, status=201)
async def create_organization(*, here: Here, access: Granted, body: OrganizationCreate) -> Response:
    """Make an organization with its first project; who makes it owns it. Whoever runs the platform may, and where its
    settings say so (`open_organizations`) every user."""
    operator = access.allows(SYSTEM)

    def work(unit: Unit) -> Answer:
        made = organizations.create_organization(unit, access.principal, body.name, operator=operator)
        unit.audit(access.permission, made.id)
        return body_answer(organization_view(made), 201, made.version)

    if here.open_organizations and not operator:
        return respond(await access.own_once(work))
    return await write(access, SystemTarget(), lambda unit, _: work(unit))


@operation(router, "GET", "/organizations", permission="organizations:read", answer=OrganizationList)
async def list_organizations(*, access: Granted, listing: Listing) -> Response:
    """The organizations within the caller's sight."""
    request = listing.page(_SORTS, "name")

    def look(unit: Unit) -> Answer:
        found = organizations.list_organizations(unit.tx, access.principal, request)
        views = [organization_view(organization) for organization in found.items]
        return body_answer(OrganizationList(data=views, pagination=pagination(found)))

    return respond(await access.own(look))


@operation(router, "GET", "/organizations/{organization}", permission="organizations:read", answer=OrganizationView)
async def get_organization(*, access: Granted, organization: Ref) -> Response:
    """One organization."""
    return await read(access, OrganizationTarget(organization), lambda tx, row: _show(row))


@operation(
    router,
    "PATCH",
    "/organizations/{organization}",
    permission="organizations:write",
    answer=OrganizationView,
    refusals=(412,),
)
async def rename_organization(
    *, access: Granted, match: IfMatch, organization: Ref, body: OrganizationPatch
) -> Response:
    """Give an organization another name."""

    def work(unit: Unit, row: Organization) -> Answer:
        match.check(row.version)
        return _show(organizations.rename_organization(unit, row, body.name))

    return await write(access, OrganizationTarget(organization), work)


@operation(
    router,
    "DELETE",
    "/organizations/{organization}",
    permission="organizations:delete",
    answer=None,
    status=204,
    refusals=(412,),
)
async def delete_organization(*, access: Granted, match: IfMatch, organization: Ref) -> Response:
    """Remove an organization that has no projects, with its members' roles, service accounts and quotas."""

    def work(unit: Unit, row: Organization) -> Answer:
        match.check(row.version)
        organizations.delete_organization(unit, row)
        return Answer(204, "")

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "GET", "/organizations/{organization}/members", permission="members:read", answer=MemberList)
async def list_members(*, access: Granted, listing: Listing, organization: Ref) -> Response:
    """Who has a role on the organization itself."""
    request = listing.page(_MEMBER_SORTS, "id")

    def look(tx: Transaction, row: Organization) -> Answer:
        found = members.list_members(tx, row, request)
        views = [_view(tx, member) for grant in found.items if (member := members.member_of(tx, grant))]
        return body_answer(MemberList(data=views, pagination=pagination(found)))

    return await read(access, OrganizationTarget(organization), look)


@operation(
    router,
    "PATCH",
    "/organizations/{organization}/members/{member}",
    permission="members:write",
    answer=MemberView,
    refusals=(412,),
)
async def change_member(
    *, access: Granted, match: IfMatch, organization: Ref, member: Ref, body: MemberPatch
) -> Response:
    """Give a member, by id or email, another role on the organization. The last owner stays one."""

    def work(unit: Unit, row: Organization) -> Answer:
        found = members.find_member(unit.tx, row, member)
        match.check(found.grant.version)
        changed = members.change_member(unit, access.principal, found, body.role)
        return body_answer(_view(unit.tx, changed), version=changed.grant.version)

    return await write(access, OrganizationTarget(organization), work)


@operation(
    router,
    "DELETE",
    "/organizations/{organization}/members/{member}",
    permission="members:write",
    answer=None,
    status=204,
)
async def remove_member(*, access: Granted, organization: Ref, member: Ref) -> Response:
    """Take all roles in the organization, and in what is below it, from a member. The last owner stays."""

    def work(unit: Unit, row: Organization) -> Answer:
        members.remove_member(unit, access.principal, row, members.find_member(unit.tx, row, member))
        return Answer(204, "")

    return await write(access, OrganizationTarget(organization), work)


def _show(organization: Organization) -> Answer:
    return body_answer(organization_view(organization), version=organization.version)


def _view(tx: Transaction, member: Member) -> MemberView:
    return member_view(member, role_name(tx, member.grant.role))
