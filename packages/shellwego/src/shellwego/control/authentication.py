"""From a bearer token to a principal.

Only the SHA-256 of a token is stored: it has 256 random bits, so a slow hash would protect nothing. Principals are kept
for half a second, because every request asks; revoking a token therefore works within that time. When a token was used
last is written at most once in ten minutes, so that requests do not write.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace

from shellwego.control.roles import roles_of
from shellwego.control.scopes import organizations_of
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import ConflictError, StaleError, UnauthenticatedError, UnavailableError
from shellwego.core.plans import FREE, UNLIMITED, rank
from shellwego.core.tenancy import Principal, Token, TokenKind, TokenUse
from shellwego.ports.store import Transaction, eq

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH = 43  # ceil(256 / log2(62))
_SECRET = re.compile(r"(?:pat|sat|ses|tmp)_[0-9A-Za-z]{43}")
_KEPT_S = 0.5
_KEPT = 4096
USE_STEP_S = 600.0
"""How coarsely the last use of a token is known."""


@dataclass(frozen=True, slots=True)
class Session:
    """A principal, and the plan by which its requests are limited."""

    principal: Principal
    plan: str
    kind: TokenKind
    used_at: float
    """When the token was used last before, coarsely; 0: never."""
    at: float
    """The store's time of this look."""


def new_secret(kind: TokenKind) -> str:
    """A token such as `pat_…` from 32 random bytes. Shown once; store `secret_hash` of it."""
    number = int.from_bytes(secrets.token_bytes(32), "big")
    digits = []
    for _ in range(_SECRET_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return f"{kind.value}_" + "".join(reversed(digits))


def secret_hash(secret: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Authenticator:
    """Looks tokens up, and remembers them for half a second."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._sessions: OrderedDict[str, tuple[float, Session]] = OrderedDict()

    async def session(self, secret: str) -> Session:
        """Who holds this token.

        Raises:
            UnauthenticatedError: it is malformed, unknown, revoked or expired; which of these is not told.
        """
        if not _SECRET.fullmatch(secret):
            raise refused()
        hashed = secret_hash(secret)
        now = self._control.clock.monotonic()
        known = self._sessions.get(hashed)
        if known is not None and now - known[0] < _KEPT_S:
            return known[1]
        self._sessions.pop(hashed, None)
        session = await self._control.read(lambda tx: look_up(tx, hashed))
        if session.at - session.used_at >= USE_STEP_S:
            await self._note_use(session)
        self._keep(hashed, now, session)
        return session

    async def refresh(self, principal: Principal) -> Principal:
        """The principal as it is now, for streams that outlive a moment; raises `UnauthenticatedError` once its token
        was revoked or has expired."""

        def look(tx: Transaction) -> Principal:
            token = tx.tokens.get(principal.token_id)
            if token is None or not _is_valid(tx, token):
                raise refused()
            return _principal(tx, token)

        return await self._control.read(look)

    async def _note_use(self, session: Session) -> None:
        """Best effort: a full disk or a second request of the same moment refuses nobody."""
        with suppress(UnavailableError, ConflictError, StaleError):
            await self._control.commit(lambda unit: _note_use(unit, session.principal.token_id))

    def _keep(self, hashed: str, now: float, session: Session) -> None:
        self._sessions[hashed] = (now, session)
        if len(self._sessions) > _KEPT:
            self._sessions.popitem(last=False)


def refused() -> UnauthenticatedError:
    """The one answer to every bad credential."""
    return UnauthenticatedError(
        "unauthenticated",
        "the request carries no valid token",
        resolution="Send “Authorization: Bearer <token>” with a token that is neither revoked nor expired.",
    )


def look_up(tx: Transaction, hashed: str) -> Session:
    """The session of a token by its hash; raises as `Authenticator.session`."""
    token = next(iter(tx.tokens.select(eq("secret_hash", hashed), limit=1)), None)
    if token is None or not _is_valid(tx, token):
        raise refused()
    principal = _principal(tx, token)
    use = tx.token_uses.get(token.id)
    return Session(principal, _plan(tx, principal), token.kind, use.used_at if use else 0.0, tx.now())


def _is_valid(tx: Transaction, token: Token) -> bool:
    user = tx.users.get(token.principal_id)
    return token.holds(tx.now()) and (user is None or user.disabled_at is None)


def _note_use(unit: Unit, token_id: str) -> None:
    use = unit.tx.token_uses.get(token_id)
    if use is None:
        unit.tx.token_uses.insert(TokenUse(id=token_id, used_at=unit.now()))
    elif unit.now() - use.used_at >= USE_STEP_S:
        unit.tx.token_uses.update(replace(use, used_at=unit.now()))


def _principal(tx: Transaction, token: Token) -> Principal:
    grants = tuple(tx.grants.select(eq("principal_id", token.principal_id)))
    return Principal(
        principal_id=token.principal_id,
        token_id=token.id,
        scopes=token.scopes,
        grants=grants,
        roles=roles_of(tx, grants),
        resources=token.resources,
    )


def _plan(tx: Transaction, principal: Principal) -> str:
    """The best plan of the organizations in which the caller holds a grant; a grant on the system has no limit."""
    if any(not grant.scope_id for grant in principal.grants):
        return UNLIMITED
    return max((organization.plan for organization in organizations_of(tx, principal)), key=rank, default=FREE)
