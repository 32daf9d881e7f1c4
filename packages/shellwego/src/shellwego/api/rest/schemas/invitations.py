"""Bodies about invitations."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from shellwego.api.rest.schemas.account import Password, TokenName
from shellwego.api.rest.schemas.common import Body, Pagination, View, when, when_or_none
from shellwego.core.invitations import Invitation

Secret = Annotated[str, Field(max_length=64, json_schema_extra={"writeOnly": True}, examples=["inv_…"])]


class InvitationCreate(Body):
    """Who is invited, and to what. The role is one that you could give yourself."""

    email: Annotated[str, Field(max_length=254, examples=["ann@example.org"])]
    role: Annotated[str, Field(min_length=1, max_length=64, examples=["developer"])]


class InvitationView(View):
    id: str
    organization_id: str
    email: str
    role: str
    state: str
    """`pending`, `accepted`, `revoked` or `expired`."""
    invited_by: str
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None


class InvitationList(View):
    data: list[InvitationView]
    pagination: Pagination


class NewInvitationView(InvitationView):
    """An invitation, with its secret for the only time: send it to whom it is for."""

    secret: str


class InvitationAccept(Body):
    may_hold_nul = frozenset({"invitation"})
    invitation: Secret


class Membership(View):
    """What was accepted."""

    organization_id: str
    role: str


class Register(Body):
    """A new user, by an invitation. A session goes to the browser as a cookie; a token of the other kind into the answer."""

    may_hold_nul = frozenset({"invitation"})
    invitation: Secret
    password: Password
    name: Annotated[str, Field(max_length=100)] = ""
    kind: Literal["personal", "session"] = "personal"
    token_name: TokenName = "sign-in"  # noqa: S105 - what it is called


def invitation_view(invitation: Invitation, role: str, now: float) -> InvitationView:
    return InvitationView(
        id=invitation.id,
        organization_id=invitation.organization_id,
        email=invitation.email,
        role=role,
        state=invitation.state(now).value,
        invited_by=invitation.invited_by,
        created_at=when(invitation.created_at),
        expires_at=when(invitation.expires_at),
        accepted_at=when_or_none(invitation.accepted_at),
    )
