"""Bodies about the caller himself: user, tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, Pagination, View, when, when_or_none
from shellwego.core.credentials import Credentials
from shellwego.core.tenancy import Principal, ServiceAccount, Token, TokenUse, User

Scopes = Annotated[list[Annotated[str, Field(max_length=80, examples=["apps:read"])]], Field(max_length=64)]
Resources = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=64)]
Password = Annotated[str, Field(max_length=1024, json_schema_extra={"writeOnly": True, "format": "password"})]
Code = Annotated[str, Field(max_length=64, json_schema_extra={"writeOnly": True}, examples=["123456"])]
TokenName = Annotated[str, Field(min_length=1, max_length=100)]
Life = Annotated[int, Field(ge=60, le=365 * 24 * 3600)]
"""Seconds."""


class GrantView(View):
    role: str
    scope_id: str


class UserView(View):
    """Who the token belongs to, and what it may."""

    id: str
    email: str | None
    """None: it is a service account's."""
    name: str
    totp: bool
    """Whether signing in takes a one-time code."""
    has_password: bool
    token_id: str
    scopes: list[str]
    resources: list[str]
    grants: list[GrantView]


class UserUpdate(Body):
    """The email is the account's name and stays."""

    name: Annotated[str, Field(max_length=100)]


class SignInRequest(Body):
    """What proves who somebody is. A session goes to the browser as a cookie; tokens of other kinds into the answer."""

    may_hold_nul = frozenset({"email", "password"})
    email: Annotated[str, Field(max_length=254)]
    password: Password
    totp: Code = ""
    """A one-time or recovery code, where the account has them."""
    kind: Literal["personal", "session", "temporary"] = "personal"
    name: TokenName = "sign-in"
    expires_in: Life | None = None


class PasswordChange(Body):
    """The old password is needed, but with a token that was issued on the platform's machine."""

    old_password: Password | None = None
    new_password: Password


class PasswordChanged(View):
    revoked_tokens: int
    """How many tokens of other sign-ins were ended."""


class TotpEnrol(Body):
    password: Password | None = None


class TotpEnrolment(View):
    """What an authenticator app takes, shown once. Codes are asked for when the first was confirmed."""

    secret: str
    uri: str


class TotpConfirm(Body):
    code: Code


class TotpConfirmed(View):
    """Each recovery code stands for a one-time code once; they are shown now and never again."""

    recovery_codes: list[str]


class TotpDisable(Body):
    password: Password | None = None
    code: Code = ""


class TotpState(View):
    enabled: bool


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


class SignedInView(TokenView):
    """A token, with its secret for the only time; a session has it in its cookie alone."""

    secret: str | None


class PersonView(View):
    """A user of the platform, as its operator sees him."""

    id: str
    email: str
    name: str
    created_at: datetime
    disabled_at: datetime | None
    has_password: bool
    totp: bool


class PersonList(View):
    data: list[PersonView]
    pagination: Pagination


class PersonUpdate(Body):
    disabled: bool


def person_view(user: User, credentials: Credentials | None) -> PersonView:
    return PersonView(
        id=user.id,
        email=user.email,
        name=user.name,
        created_at=when(user.created_at),
        disabled_at=when_or_none(user.disabled_at),
        has_password=credentials is not None and bool(credentials.password_hash),
        totp=credentials is not None and credentials.totp_on,
    )


def user_view(user: User, credentials: Credentials | None, principal: Principal) -> UserView:
    return UserView(
        id=user.id,
        email=user.email or None,
        name=user.name,
        totp=credentials is not None and credentials.totp_on,
        has_password=credentials is not None and bool(credentials.password_hash),
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


def service_account_view(account: ServiceAccount, principal: Principal) -> UserView:
    """What a service account is told of itself."""
    nobody = User(id=account.id, email="", name=account.name, created_at=account.created_at)
    return user_view(nobody, None, principal)


def signed_in_view(token: Token, secret: str | None) -> SignedInView:
    return SignedInView(secret=secret, **token_view(token).model_dump())
