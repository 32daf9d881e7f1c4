"""Who the caller is: the user and his tokens."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, refuse_key, respond
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing
from shellwego.api.rest.routes.common import Here, Id, Source, resource_router
from shellwego.api.rest.schemas.account import (
    NewTokenView,
    PasswordChange,
    PasswordChanged,
    TokenCreate,
    TokenList,
    TokenView,
    TotpConfirm,
    TotpConfirmed,
    TotpDisable,
    TotpEnrol,
    TotpEnrolment,
    TotpState,
    UserUpdate,
    UserView,
    new_token_view,
    service_account_view,
    token_view,
    user_view,
)
from shellwego.api.rest.schemas.common import pagination
from shellwego.control import tokens
from shellwego.control.accounts import Proof, rename
from shellwego.control.authentication import new_secret
from shellwego.control.authorization import Access
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.unit import Unit
from shellwego.core.tenancy import User

router = resource_router("account")
_TOKEN_SORTS: dict[str, type[str] | type[float]] = {"id": str}
_ISSUER = "ShellWeGo"


@operation(router, "GET", "/user", permission="user:read", answer=UserView)
async def get_user(*, access: Granted) -> Response:
    """Who the token belongs to, and what it may."""

    def look(unit: Unit) -> Answer:
        account = unit.tx.service_accounts.get(access.principal.principal_id)
        if account is not None:
            return body_answer(service_account_view(account, access.principal), version=account.version)
        return _told(unit, access, tokens.own_user(unit.tx, access.principal))

    return respond(await access.own(look))


@operation(router, "PATCH", "/user", permission="user:write", answer=UserView, refusals=(412,))
async def update_user(*, access: Granted, body: UserUpdate, if_match: IfMatch) -> Response:
    """Change the caller's name."""
    await access.account()

    def work(unit: Unit) -> Answer:
        if_match.check(tokens.own_user(unit.tx, access.principal).version)
        return _told(unit, access, rename(unit, access.principal, body.name))

    return respond(await access.own_once(work))


def _told(unit: Unit, access: Access, user: User) -> Answer:
    credentials = unit.tx.credentials.get(user.id)
    return body_answer(user_view(user, credentials, access.principal), version=user.version)


@operation(router, "PUT", "/user/password", permission="user:write", answer=PasswordChanged)
async def set_password(*, access: Granted, here: Here, source: Source, body: PasswordChange) -> Response:
    """Change the password, and end all other sign-ins."""
    refuse_key(access)
    proof = Proof(password=body.old_password, source=source)
    ended = await here.identity.accounts.set_password(access, body.new_password, proof)
    return respond(body_answer(PasswordChanged(revoked_tokens=ended)))


@operation(router, "POST", "/user/totp", permission="user:write", answer=TotpEnrolment, status=201)
async def enrol_totp(*, access: Granted, here: Here, source: Source, body: TotpEnrol) -> Response:
    """Make a secret for one-time codes. Its secret is in this answer only."""
    refuse_key(access)
    enrolment = await here.identity.accounts.enrol_totp(
        access, Proof(password=body.password, source=source), issuer=_ISSUER
    )
    return respond(body_answer(TotpEnrolment(secret=enrolment.secret, uri=enrolment.uri), 201))


@operation(router, "POST", "/user/totp/confirm", permission="user:write", answer=TotpConfirmed)
async def confirm_totp(*, access: Granted, here: Here, source: Source, body: TotpConfirm) -> Response:
    """Turn one-time codes on, with the first code. The recovery codes are in this answer only."""
    refuse_key(access)
    recovery = await here.identity.accounts.confirm_totp(access, body.code, source)
    return respond(body_answer(TotpConfirmed(recovery_codes=list(recovery))))


@operation(router, "POST", "/user/totp/disable", permission="user:write", answer=TotpState)
async def disable_totp(*, access: Granted, here: Here, source: Source, body: TotpDisable) -> Response:
    """Ask for one-time codes no more."""
    refuse_key(access)
    await here.identity.accounts.disable_totp(access, Proof(password=body.password, code=body.code, source=source))
    return respond(body_answer(TotpState(enabled=False)))


@operation(router, "GET", "/user/tokens", permission="tokens:read", answer=TokenList)
async def list_tokens(*, access: Granted, listing: Listing) -> Response:
    """The caller's tokens, without their secrets; for a token that is narrowed to resources, those that it made."""
    request = listing.page(_TOKEN_SORTS, "id")

    def look(unit: Unit) -> Answer:
        found = page(unit.tx.tokens, request, *tokens.own_tokens(access.principal))
        views = [token_view(token, unit.tx.token_uses.get(token.id)) for token in found.items]
        return body_answer(TokenList(data=views, pagination=pagination(found)))

    return respond(await access.own(look))


@operation(router, "POST", "/user/tokens", permission="tokens:write", answer=NewTokenView, status=201)
async def create_token(*, access: Granted, body: TokenCreate) -> Response:
    """Make a token, not stronger than the one that asks and ended with it. Its secret is in this answer only."""
    refuse_key(access)
    wish = tokens.TokenWish(
        name=body.name,
        kind=tokens.kind_for(access.principal, temporary=body.kind == "temporary"),
        scopes=tuple(body.scopes),
        resources=tuple(body.resources),
        life_s=body.expires_in,
    )
    secret = new_secret(wish.kind)

    def work(unit: Unit) -> Answer:
        return body_answer(new_token_view(tokens.create_token(unit, access.principal, wish, secret), secret), 201)

    return respond(await access.own(work))


@operation(router, "DELETE", "/user/tokens/{token}", permission="tokens:write", answer=TokenView)
async def revoke_token(*, access: Granted, token: Id) -> Response:
    """Make one of the caller's tokens void within a second, and all that it made."""
    return respond(
        await access.own_once(lambda unit: body_answer(token_view(tokens.revoke_token(unit, access.principal, token))))
    )
