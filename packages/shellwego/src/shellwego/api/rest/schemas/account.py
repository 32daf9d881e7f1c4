"""Bodies about the caller himself: user, tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, Pagination, View, when, when_or_none
from shellwego.core.tenancy import Principal, Token, TokenUse, User

Scopes = Annotated[list[Annotated[str, Field(max_length=80, examples=["apps:read"])]], Field(max_length=64)]
Resources = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=64)]
TokenName = Annotated[str, Field(min_length=1, max_length=100)]
Life = Annotated[int, Field(ge=60, le=365 * 24 * 3600)]
"""Seconds."""


class GrantView(View):
    role: str
    scope_id: str


class UserView(View):
    """Who the token belongs to, and what it may."""

    id: str
    email: str
    token_id: str
    scopes: list[str]
    resources: list[str]
    grants: list[GrantView]


class TokenCreate(Body):
    """A token for the caller himself. It can hold no scope and reach no resource that the asking token does not, and ends
    no later. A temporary one lives a quarter of an hour at most."""

    name: TokenName
    kind: Literal["personal", "temporary"] = "personal"
    scopes: Scopes = Field(default_factory=list)
    """Such as `apps:read`; none: those of the asking token."""
    resources: Resources = Field(default_factory=list)
    """Ids of organizations, projects and apps to which it is narrowed; none: those of the asking token."""
    expires_in: Life | None = None


class TokenView(View):
    id: str
    kind: str
    name: str
    scopes: list[str]
    resources: list[str]
    parent_id: str | None
    """The token that made it, and ends it with itself."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To within ten minutes."""


class TokenList(View):
    data: list[TokenView]
    pagination: Pagination


class NewTokenView(TokenView):
    """A token, with its secret for the only time."""

    secret: str


def user_view(user: User, principal: Principal) -> UserView:
    return UserView(
        id=user.id,
        email=user.email,
        token_id=principal.token_id,
        scopes=list(principal.scopes),
        resources=list(principal.resources),
        grants=[GrantView(role=grant.role, scope_id=grant.scope_id) for grant in principal.grants],
    )


def token_view(token: Token, use: TokenUse | None = None) -> TokenView:
    return TokenView(
        id=token.id,
        kind=token.kind.value,
        name=token.name,
        scopes=list(token.scopes),
        resources=list(token.resources),
        parent_id=token.parent_id or None,
        created_at=when(token.created_at),
        expires_at=when_or_none(token.expires_at),
        revoked_at=when_or_none(token.revoked_at),
        last_used_at=when_or_none(use.used_at if use else None),
    )


def new_token_view(token: Token, secret: str) -> NewTokenView:
    return NewTokenView(secret=secret, **token_view(token).model_dump())
