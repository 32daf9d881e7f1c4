"""Signing in and out."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, respond
from shellwego.api.rest.cookies import forget_session, refuse_foreign_login, set_session
from shellwego.api.rest.guard import PUBLIC, Granted, operation
from shellwego.api.rest.routes.common import Here, Id, Source, resource_router
from shellwego.api.rest.schemas.account import SignedInView, SignInRequest, TokenView, signed_in_view, token_view
from shellwego.control import tokens
from shellwego.control.authentication import new_secret
from shellwego.control.idempotency import Answer
from shellwego.control.scopes import missing
from shellwego.control.signin import Attempt
from shellwego.control.unit import Unit
from shellwego.core.tenancy import TokenKind

router = resource_router("auth")
_KINDS = {"personal": TokenKind.PERSONAL, "session": TokenKind.SESSION, "temporary": TokenKind.TEMPORARY}
CURRENT = "current"


@operation(
    router,
    "POST",
    "/auth/token",
    permission=PUBLIC,
    answer=SignedInView,
    status=201,
    refusals=(401, 403, 429, 503),
)
async def sign_in(*, request: Request, here: Here, source: Source, body: SignInRequest) -> Response:
    """Sign in for a token. What is wrong about a refused attempt is not told, and takes as long as one that is not."""
    refuse_foreign_login(request)
    kind = _KINDS[body.kind]
    wish = tokens.TokenWish(name=body.name, kind=kind, life_s=body.expires_in)
    attempt = Attempt(
        email=body.email,
        password=body.password,
        code=body.totp,
        source=source,
        trace_id=request.scope.get("trace_id", ""),
    )
    secret = new_secret(kind)
    token = await here.identity.sign_in.token(attempt, wish, secret)
    if kind is not TokenKind.SESSION:
        return respond(body_answer(signed_in_view(token, secret), 201))
    response = respond(body_answer(signed_in_view(token, None), 201))
    set_session(response, secret, tokens.life(wish))
    return response


@operation(router, "DELETE", "/auth/token/{token}", permission="tokens:write", answer=TokenView)
async def sign_out(*, access: Granted, token: Id) -> Response:
    """End the token that asks, by its id or as `current`, and all that it made. Any token may end itself."""

    def work(unit: Unit) -> Answer:
        if token not in (CURRENT, access.principal.token_id):
            raise missing("token", token)
        return body_answer(token_view(tokens.revoke_token(unit, access.principal, access.principal.token_id)))

    response = respond(await access.itself(work))
    forget_session(response)
    return response
