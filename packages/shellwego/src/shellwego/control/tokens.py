"""A user's own tokens. One token can make another, never a stronger one: not with more scopes, not with a longer life."""

from __future__ import annotations

import re
from dataclasses import replace

from shellwego.control.authentication import secret_hash
from shellwego.control.config import refuse
from shellwego.control.scopes import missing
from shellwego.control.unit import Unit
from shellwego.core.errors import FieldError, UnauthenticatedError
from shellwego.core.tenancy import Principal, Token, TokenKind, User
from shellwego.ports.store import Transaction

_SCOPE = re.compile(r"(?:[a-z][a-z-]{0,38}|\*):(?:[a-z][a-z-]{0,38}|\*)")


def own_user(tx: Transaction, principal: Principal) -> User:
    """The user behind the token."""
    user = tx.users.get(principal.principal_id)
    if user is None:
        raise UnauthenticatedError("unauthenticated", "the token's user is gone")
    return user


def create_token(
    unit: Unit, principal: Principal, *, secret: str, name: str, scopes: tuple[str, ...], life_s: float
) -> Token:
    """Store a new personal token of the caller.

    Raises:
        InvalidError: a scope that is malformed, or that the asking token does not hold.
    """
    refuse("scopes-refused", tuple(fault for scope in scopes if (fault := _fault(principal, scope))))
    asking = unit.tx.tokens.get(principal.token_id)
    expires_at = unit.now() + life_s
    if asking is not None and asking.expires_at is not None:
        expires_at = min(expires_at, asking.expires_at)
    token = unit.tx.tokens.insert(
        Token(
            id=unit.new_id("tok"),
            kind=TokenKind.PERSONAL,
            principal_id=principal.principal_id,
            name=name,
            secret_hash=secret_hash(secret),
            scopes=scopes or principal.scopes,
            created_at=unit.now(),
            expires_at=expires_at,
        )
    )
    unit.audit("tokens:write", token.id, detail="created")
    return token


def _fault(principal: Principal, scope: str) -> FieldError | None:
    if not _SCOPE.fullmatch(scope):
        return FieldError("scopes", "bad-scope", f"“{scope[:80]}” is not of the form resource:action")
    if not principal.scopes or any(_covers(held, scope) for held in principal.scopes):
        return None
    return FieldError("scopes", "not-held", f"the asking token does not hold {scope}")


def _covers(held: str, wanted: str) -> bool:
    return all(a in ("*", b) for a, b in zip(held.split(":"), wanted.split(":"), strict=False))


def revoke_token(unit: Unit, principal: Principal, id_: str) -> Token:
    """Make a token of the caller void; once more changes nothing. Raises `NotFoundError`."""
    token = unit.tx.tokens.get(id_)
    if token is None or token.principal_id != principal.principal_id:
        raise missing("token", id_)
    if token.revoked_at is not None:
        return token
    unit.audit("tokens:write", token.id, detail="revoked")
    return unit.tx.tokens.update(replace(token, revoked_at=unit.now()))
