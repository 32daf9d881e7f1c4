"""Service accounts: principals that are not people, with grants and tokens like a user.

Whoever makes a token for an account could use it himself, so he must hold all that the token would.

A token that a service account makes, for itself or for another account, is a child of the token that asked, and ends
with it: whoever steals a machine's token gets nothing by it that outlives it. A token that a user makes is a child of
none. It belongs to the organization, and would otherwise end with the sign-in that made it, when the user signs out or
changes his password; the audit record says who made it.
"""

from __future__ import annotations

from dataclasses import replace

from shellwego.control import tokens
from shellwego.control.config import refuse
from shellwego.control.quotas import charge_organization
from shellwego.control.roles import refuse_to_give, roles_of
from shellwego.control.scopes import missing, scope_at
from shellwego.control.tokens import TokenWish
from shellwego.control.unit import Unit
from shellwego.core import hostnames, iam
from shellwego.core.attenuation import Power
from shellwego.core.errors import ConflictError, FieldError
from shellwego.core.ids import is_id
from shellwego.core.tenancy import Organization, Principal, ServiceAccount, Token
from shellwego.ports.store import Transaction, eq


def create_account(unit: Unit, organization: Organization, name: str, description: str = "") -> ServiceAccount:
    """Make an account, which may nothing until it is granted something.

    Raises:
        InvalidError: the name is none.
        ConflictError: the organization has an account of this name.
    """
    _check_name(unit.tx, organization.id, name)
    account = unit.tx.service_accounts.insert(
        ServiceAccount(
            id=unit.new_id("svc"),
            organization_id=organization.id,
            name=name,
            description=description,
            created_at=unit.now(),
        )
    )
    _tell(unit, "service-account.created", account)
    return account


def find_account(tx: Transaction, organization: Organization, ref: str) -> ServiceAccount:
    """An account of the organization, by id or name; raises `NotFoundError`."""
    named = tx.service_accounts.select(eq("organization_id", organization.id), eq("name", ref), limit=1)
    account = tx.service_accounts.get(ref) or (named[0] if named else None)
    if account is None or account.organization_id != organization.id:
        raise missing("service account", ref)
    return account


def change_account(
    unit: Unit, account: ServiceAccount, *, name: str | None = None, description: str | None = None
) -> ServiceAccount:
    """Rename or describe an account; None leaves as it is. Raises as `create_account`."""
    if name is not None and name != account.name:
        _check_name(unit.tx, account.organization_id, name)
    told = account.description if description is None else description
    changed = unit.tx.service_accounts.update(replace(account, name=name or account.name, description=told))
    _tell(unit, "service-account.changed", changed)
    return changed


def delete_account(unit: Unit, account: ServiceAccount) -> None:
    """Remove an account; its tokens are void from now on, and what they made."""
    for token in unit.tx.tokens.select(eq("principal_id", account.id)):
        tokens.revoke(unit, token, detail="revoked with its service account")
        unit.tx.tokens.delete(token.id)
    for grant in unit.tx.grants.select(eq("principal_id", account.id)):
        unit.tx.grants.delete(grant.id)
    unit.tx.service_accounts.delete(account.id)
    _tell(unit, "service-account.deleted", account)


def refuse_stronger(tx: Transaction, principal: Principal, account: ServiceAccount, scopes: tuple[str, ...]) -> None:
    """Refuse to act for an account that holds more than the caller does; raises `ForbiddenError`."""
    grants = tuple(tx.grants.select(eq("principal_id", account.id)))
    holder = Principal(principal_id=account.id, token_id="", scopes=scopes, grants=grants, roles=roles_of(tx, grants))
    for grant in grants:
        scope = scope_at(tx, grant.scope_id)
        if scope is not None:
            given = iam.role_permissions(holder, grant.role)
            refuse_to_give(principal, iam.intersection(given, scopes) if scopes else given, scope, "service_account")


def create_token(
    unit: Unit,
    principal: Principal,
    organization: Organization,
    account: ServiceAccount,
    wish: TokenWish,
    *,
    secret: str,
) -> Token:
    """Store a token by which somebody works as the account. What the account is granted later the token holds, too, as
    far as its scopes name it.

    Raises:
        UnauthenticatedError: the asking token was revoked in between.
        InvalidError: a scope that names no permission.
        ForbiddenError: the token would hold more than the caller does.
        QuotaError: the organization has as many tokens as it may.
    """
    refuse("scopes-refused", tokens.scope_faults(wish.scopes))
    refuse_stronger(unit.tx, principal, account, wish.scopes)
    charge_organization(unit, organization, {"tokens": 1})
    parent_id, ends_at = _parent(unit, principal)
    ends = [unit.now() + tokens.life(wish), *([] if ends_at is None else [ends_at])]
    token = tokens.insert_token(
        unit, account.id, wish, secret, power=Power(wish.scopes, (), min(ends)), parent_id=parent_id
    )
    _tell(unit, "service-account.token.created", account, token)
    return token


def _parent(unit: Unit, principal: Principal) -> tuple[str, float | None]:
    """The id of the token that the new one is a child of, and when that ends; none where a user asks."""
    if not is_id("svc", principal.principal_id):
        return "", None
    asking = tokens.asking_token(unit, principal)
    return asking.id, asking.expires_at


def revoke_token(unit: Unit, account: ServiceAccount, id_: str) -> Token:
    """Make a token of the account void, and all that it made. Raises `NotFoundError`."""
    token = unit.tx.tokens.get(id_)
    if token is None or token.principal_id != account.id:
        raise missing("token", id_)
    revoked = tokens.revoke(unit, token)
    _tell(unit, "service-account.token.revoked", account, revoked)
    return revoked


def _check_name(tx: Transaction, organization_id: str, name: str) -> None:
    hostnames.check_name(name)
    if tx.service_accounts.select(eq("organization_id", organization_id), eq("name", name), limit=1):
        fault = FieldError("name", "already-exists", "this name is in use in the organization")
        message = f"the organization has a service account “{name}” already"
        raise ConflictError("service-account-exists", message, errors=(fault,))


def _tell(unit: Unit, type_: str, account: ServiceAccount, token: Token | None = None) -> None:
    data = {"name": account.name, **({"token": token.id} if token else {})}
    unit.emit(type_, account.id, organization_id=account.organization_id, data=data)
