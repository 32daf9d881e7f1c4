"""Tokens of a principal. One token can make another, never a stronger one, and ends those that it made with itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shellwego.control.authentication import refused, secret_hash
from shellwego.control.config import refuse
from shellwego.control.quotas import charge_organization
from shellwego.control.scopes import chain_of, missing
from shellwego.control.unit import Unit
from shellwego.core import iam
from shellwego.core.attenuation import Power, attenuate
from shellwego.core.errors import ConflictError, FieldError, InvalidError, QuotaError, UnauthenticatedError
from shellwego.core.ids import is_id
from shellwego.core.tenancy import Issuer, Principal, Token, TokenKind, User
from shellwego.ports.store import Transaction, Where, eq

_DAY_S = 24 * 3600.0
LIVES: Mapping[TokenKind, float] = {
    TokenKind.PERSONAL: 365 * _DAY_S,
    TokenKind.SERVICE: 90 * _DAY_S,
    TokenKind.SESSION: _DAY_S,
    TokenKind.TEMPORARY: 900.0,
}
"""How long a token of each kind lives at most, in seconds."""
MAX_TOKENS = 2000
"""Of one user, when another token asks for one more; who signs in always gets one."""
KEPT_S = 7 * _DAY_S
"""How long a token is listed after its end."""
_SWEEP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWish:
    """A token that somebody asks for. `life_s` None: as long as its kind lives."""

    name: str
    kind: TokenKind = TokenKind.PERSONAL
    scopes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    life_s: float | None = None


def own_user(tx: Transaction, principal: Principal) -> User:
    """The user behind the token."""
    user = tx.users.get(principal.principal_id)
    if user is None:
        raise UnauthenticatedError("unauthenticated", "the token's user is gone")
    return user


def kind_for(principal: Principal, *, temporary: bool) -> TokenKind:
    """The kind of a token that this principal makes for itself."""
    if temporary:
        return TokenKind.TEMPORARY
    return TokenKind.SERVICE if is_id("svc", principal.principal_id) else TokenKind.PERSONAL


def scope_faults(scopes: Sequence[str]) -> tuple[FieldError, ...]:
    """Those that name no permission: whoever writes one would only find that his token may nothing."""
    return tuple(
        FieldError(f"scopes[{number}]", "unknown", f"there is no permission “{scope[:80]}”")
        for number, scope in enumerate(scopes)
        if not any(iam.names((scope,), permission) for permission in iam.PERMISSIONS)
    )


def create_token(unit: Unit, principal: Principal, wish: TokenWish, secret: str) -> Token:
    """Store a new token of the caller, a child of the one that asks.

    Raises:
        UnauthenticatedError: the asking token was revoked in between.
        InvalidError: a scope that names no permission, a scope or resource that the asking token does not hold, or a life
            longer than the kind's.
        QuotaError: the principal, or a service account's organization, has as many as it may.
    """
    asking = asking_token(unit, principal)
    chains = {each: chain for each in wish.resources if (chain := _seen_chain(unit.tx, principal, each))}
    wished = Power(wish.scopes, wish.resources, unit.now() + life(wish))
    power = attenuate(Power(asking.scopes, asking.resources, asking.expires_at), wished, chains)
    refuse("scopes-refused", scope_faults(wish.scopes))
    forget_ended(unit, principal.principal_id)
    _charge(unit, principal)
    token = insert_token(unit, principal.principal_id, wish, secret, power=power, parent_id=asking.id)
    unit.audit("tokens:write", token.id, detail="created")
    return token


def asking_token(unit: Unit, principal: Principal) -> Token:
    """The token that asks; raises `UnauthenticatedError` where it was revoked in between."""
    asking = unit.tx.tokens.get(principal.token_id)
    if asking is None or not asking.holds(unit.now()):
        raise refused()
    return asking


def insert_token(
    unit: Unit,
    principal_id: str,
    wish: TokenWish,
    secret: str,
    *,
    power: Power,
    parent_id: str = "",
    issued_by: Issuer = Issuer.TOKEN,
) -> Token:
    """Store a token whose power was judged before."""
    return unit.tx.tokens.insert(
        Token(
            id=unit.new_id("tok"),
            kind=wish.kind,
            principal_id=principal_id,
            name=wish.name,
            secret_hash=secret_hash(secret),
            scopes=power.scopes,
            resources=power.resources,
            created_at=unit.now(),
            expires_at=power.expires_at,
            parent_id=parent_id,
            issued_by=issued_by,
        )
    )


def _charge(unit: Unit, principal: Principal) -> None:
    """Refuse one more than there may be: of a service account by its organization's quota, of a user by a fixed bound."""
    account = unit.tx.service_accounts.get(principal.principal_id)
    organization = unit.tx.organizations.get(account.organization_id) if account else None
    if organization is not None:
        charge_organization(unit, organization, {"tokens": 1})
    elif unit.tx.tokens.count(eq("principal_id", principal.principal_id)) >= MAX_TOKENS:
        raise QuotaError(
            "too-many-tokens",
            f"a user has at most {MAX_TOKENS} tokens",
            resolution="Revoke some; those that ended count for a week more.",
        )


def forget_ended(unit: Unit, principal_id: str) -> None:
    """Forget some of a principal's tokens that ended a while ago, so that who signs in every minute fills no table. One of
    the host is remembered: it would be let in again at the next start. Looks at the oldest, and at those after them until
    there is one to forget: many may be alive, and older than all that ended."""
    before, after = unit.now() - KEPT_S, None
    while True:
        some = unit.tx.tokens.select(eq("principal_id", principal_id), limit=_SWEEP, after=after)
        past = [token for token in some if token.ended_by(before) and token.issued_by is not Issuer.HOST]
        for token in past:
            unit.tx.tokens.delete(token.id)
            if unit.tx.token_uses.get(token.id) is not None:
                unit.tx.token_uses.delete(token.id)
        if past or len(some) < _SWEEP:
            return
        after = (some[-1].id, some[-1].id)


def life(wish: TokenWish) -> float:
    """Seconds that the token is to live; raises `InvalidError` where its kind does not live so long."""
    most = LIVES[wish.kind]
    if wish.life_s is not None and wish.life_s > most:
        words = f"a token of the kind {wish.kind} lives at most {most:.0f} seconds"
        raise InvalidError("life-refused", words, errors=(FieldError("expires_in", "too-long", words),))
    return most if wish.life_s is None else wish.life_s


def _seen_chain(tx: Transaction, principal: Principal, resource: str) -> tuple[str, ...]:
    """The chain of a resource on which the caller holds any grant at all; empty where it is foreign or absent."""
    chain = chain_of(tx, resource) if resource else ()
    return chain if any(grant.scope_id in chain for grant in principal.grants) else ()


def own_tokens(principal: Principal) -> tuple[Where, ...]:
    """Conditions on the tokens that the caller may see and revoke: all of the principal; for a token that is narrowed to
    resources, those that it made itself."""
    if principal.resources:
        return (eq("parent_id", principal.token_id),)
    return (eq("principal_id", principal.principal_id),)


def revoke_token(unit: Unit, principal: Principal, id_: str) -> Token:
    """Make a token of the caller void, and all that it made; once more changes nothing. Raises `NotFoundError`."""
    token = unit.tx.tokens.get(id_)
    if token is None or not _may_revoke(unit.tx, principal, token):
        raise missing("token", id_)
    return revoke(unit, token)


def sign_out(unit: Unit, principal: Principal) -> Token:
    """Make the asking token void, and all that it made.

    Raises:
        ConflictError: it was issued on the host, whose contexts share it: forgetting one of them shall not end the others.
    """
    token = unit.tx.tokens.get(principal.token_id)
    if token is None:
        raise refused()
    if token.issued_by is Issuer.HOST:
        raise ConflictError(
            "token-of-host",
            "it was issued on the platform's machine, which goes on using it",
            resolution=f"To end it nevertheless: swg tokens revoke {token.id}",
        )
    return revoke(unit, token)


def _may_revoke(tx: Transaction, principal: Principal, token: Token) -> bool:
    if token.id == principal.token_id:
        return True
    if token.principal_id != principal.principal_id:
        return False
    return not principal.resources or principal.token_id in lineage(tx, token.id)


def lineage(tx: Transaction, token_id: str) -> list[str]:
    """A token's id, and those of what made it, up to the first."""
    found: list[str] = []
    while token_id and token_id not in found:
        found.append(token_id)
        token = tx.tokens.get(token_id)
        token_id = token.parent_id if token else ""
    return found


def revoke(unit: Unit, token: Token, detail: str = "revoked") -> Token:
    """Make a token and all below it void, in this transaction."""
    if token.revoked_at is not None:
        return token
    ended = unit.tx.tokens.update(replace(token, revoked_at=unit.now()))
    below: deque[Token] = deque(unit.tx.tokens.select(eq("parent_id", token.id)))
    while below:
        child = below.popleft()
        below.extend(unit.tx.tokens.select(eq("parent_id", child.id)))
        if child.revoked_at is None:
            unit.tx.tokens.update(replace(child, revoked_at=unit.now()))
    unit.audit("tokens:write", token.id, detail=detail)
    return ended
