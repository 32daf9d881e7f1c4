"""Inviting people to an organization, and accepting."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read, refuse_key, respond, write
from shellwego.api.rest.cookies import refuse_foreign_login
from shellwego.api.rest.guard import PUBLIC, Granted, operation
from shellwego.api.rest.lists import Listing
from shellwego.api.rest.routes.auth import TOKEN_KINDS, signed_in
from shellwego.api.rest.routes.common import Here, Id, Ref, Source, resource_router
from shellwego.api.rest.schemas.account import SignedInView
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.invitations import (
    InvitationAccept,
    InvitationCreate,
    InvitationList,
    InvitationView,
    Membership,
    NewInvitationView,
    Register,
    invitation_view,
)
from shellwego.control import tokens
from shellwego.control.authentication import new_secret
from shellwego.control.idempotency import Answer
from shellwego.control.invitations import Registration, find_invitation, invitation_secret, invite, revoke_invitation
from shellwego.control.pages import page
from shellwego.control.roles import role_name
from shellwego.control.targets import OrganizationTarget
from shellwego.control.unit import Unit
from shellwego.core.invitations import Invitation
from shellwego.core.tenancy import Organization
from shellwego.ports.store import Transaction, eq

router = resource_router("invitations")
_SORTS: dict[str, type[str] | type[float]] = {"created_at": float, "id": str}


def _view(tx: Transaction, invitation: Invitation) -> InvitationView:
    return invitation_view(invitation, role_name(tx, invitation.role), tx.now())


@operation(
    router,
    "POST",
    "/organizations/{organization}/invitations",
    permission="members:write",
    answer=NewInvitationView,
    status=201,
)
async def create_invitation(*, access: Granted, organization: Ref, body: InvitationCreate) -> Response:
    """Invite somebody by his address, for a week. Its secret is in this answer only, and is yours to send."""
    refuse_key(access)
    secret = invitation_secret()

    def work(unit: Unit, row: Organization) -> Answer:
        invitation = invite(unit, access.principal, row, email=body.email, role=body.role, secret=secret)
        view = NewInvitationView(secret=secret, **_view(unit.tx, invitation).model_dump())
        return body_answer(view, 201)

    return await write(access, OrganizationTarget(organization), work)


@operation(
    router,
    "GET",
    "/organizations/{organization}/invitations",
    permission="members:write",
    answer=InvitationList,
)
async def list_invitations(*, access: Granted, organization: Ref, listing: Listing) -> Response:
    """All invitations of an organization, the newest first."""
    request = listing.page(_SORTS, "created_at:desc")

    def look(tx: Transaction, row: Organization) -> Answer:
        found = page(tx.invitations, request, eq("organization_id", row.id))
        views = [_view(tx, invitation) for invitation in found.items]
        return body_answer(InvitationList(data=views, pagination=pagination(found)))

    return await read(access, OrganizationTarget(organization), look)


@operation(
    router,
    "DELETE",
    "/organizations/{organization}/invitations/{invitation}",
    permission="members:write",
    answer=InvitationView,
)
async def delete_invitation(*, access: Granted, organization: Ref, invitation: Id) -> Response:
    """Revoke an invitation."""

    def work(unit: Unit, row: Organization) -> Answer:
        return body_answer(_view(unit.tx, revoke_invitation(unit, find_invitation(unit.tx, row, invitation))))

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "POST", "/invitations/accept", permission="user:write", answer=Membership)
async def accept_invitation(*, access: Granted, here: Here, body: InvitationAccept) -> Response:
    """Accept an invitation to the caller's own address."""
    refuse_key(access)
    grant = await here.identity.invitations.accept(access, body.invitation)
    role = await here.control.read(lambda tx: role_name(tx, grant.role))
    return respond(body_answer(Membership(organization_id=grant.scope_id, role=role)))


@operation(
    router,
    "POST",
    "/auth/register",
    permission=PUBLIC,
    answer=SignedInView,
    status=201,
    refusals=(403, 404, 429, 503),
)
async def register(*, request: Request, here: Here, source: Source, body: Register) -> Response:
    """Accept an invitation as a new user, who is then signed in."""
    refuse_foreign_login(request)
    kind = TOKEN_KINDS[body.kind]
    wish = tokens.TokenWish(name=body.token_name, kind=kind)
    registration = Registration(
        secret=body.invitation,
        password=body.password,
        name=body.name,
        source=source,
        trace_id=request.scope.get("trace_id", ""),
    )
    secret = new_secret(kind)
    token = await here.identity.invitations.register(registration, wish, secret)
    return signed_in(token, wish, secret)
