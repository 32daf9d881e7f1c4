"""Who the caller is: user and tokens."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, refuse_key, respond
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing
from shellwego.api.rest.routes.common import Id, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.resources import (
    GrantView,
    NewTokenView,
    TokenCreate,
    TokenList,
    TokenView,
    UserView,
    new_token_view,
    token_view,
)
from shellwego.control import tokens
from shellwego.control.authentication import new_secret
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.unit import Unit
from shellwego.core.tenancy import TokenKind
from shellwego.ports.store import eq

router = resource_router("account")
_TOKEN_SORTS: dict[str, type[str] | type[float]] = {"id": str}


@operation(router, "GET", "/user", permission="user:read", answer=UserView)
async def get_user(*, access: Granted) -> Response:
    """Who the token belongs to, and what it may."""

    def look(unit: Unit) -> Answer:
        user = tokens.own_user(unit.tx, access.principal)
        return body_answer(
            UserView(
                id=user.id,
                email=user.email,
                token_id=access.principal.token_id,
                scopes=list(access.principal.scopes),
                grants=[GrantView(role=grant.role, scope_id=grant.scope_id) for grant in access.principal.grants],
            )
        )

    return respond(await access.own(look))


@operation(router, "GET", "/user/tokens", permission="tokens:read", answer=TokenList)
async def list_tokens(*, access: Granted, listing: Listing) -> Response:
    """The caller's tokens, without their secrets."""
    request = listing.page(_TOKEN_SORTS, "id")

    def look(unit: Unit) -> Answer:
        found = page(unit.tx.tokens, request, eq("principal_id", access.principal.principal_id))
        return body_answer(TokenList(data=[token_view(token) for token in found.items], pagination=pagination(found)))

    return respond(await access.own(look))


@operation(router, "POST", "/user/tokens", permission="tokens:write", answer=NewTokenView, status=201)
async def create_token(*, access: Granted, body: TokenCreate) -> Response:
    """Make a token, not stronger than the one that asks. Its secret is in this answer only."""
    refuse_key(access)
    secret = new_secret(TokenKind.PERSONAL)

    def work(unit: Unit) -> Answer:
        token = tokens.create_token(
            unit,
            access.principal,
            secret=secret,
            name=body.name,
            scopes=tuple(body.scopes),
            life_s=body.expires_in,
        )
        return body_answer(new_token_view(token, secret), 201)

    return respond(await access.own(work))


@operation(router, "DELETE", "/user/tokens/{token}", permission="tokens:write", answer=TokenView)
async def revoke_token(*, access: Granted, token: Id) -> Response:
    """Make one of the caller's tokens void, within a second."""
    return respond(
        await access.own(lambda unit: body_answer(token_view(tokens.revoke_token(unit, access.principal, token))))
    )
