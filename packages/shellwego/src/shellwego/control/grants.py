"""Grants: who has which role where. A principal has one role on a scope; what it has above holds as well.

Nobody gives or takes what he does not hold on that scope himself, and an organization (or the system) keeps its last owner:
both are judged in the transaction of the change, which sees every other one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.addresses import find_user
from shellwego.control.config import refuse
from shellwego.control.roles import choose_role, refuse_to_give, role_name
from shellwego.control.scopes import Scope, missing, scope_at
from shellwego.control.targets import Found
from shellwego.control.unit import Unit
from shellwego.core import iam
from shellwego.core.errors import ConflictError, FieldError
from shellwego.core.ids import is_id
from shellwego.core.tenancy import Grant, Principal, ServiceAccount, User
from shellwego.ports.store import Transaction, eq

SYSTEM_NAME = "system"
"""How a request names the whole platform as a scope."""


@dataclass(frozen=True, slots=True)
class ScopeIdTarget:
    """The scope with this id: an organization, a project, an app, or `system`."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[Scope]:
        scope = scope_at(tx, "" if self.ref == SYSTEM_NAME else self.ref) if self.ref else None
        if scope is None:
            raise missing("scope", self.ref)
        absent = missing("scope", self.ref) if scope.id else None
        return Found(scope, scope, scope.id or SYSTEM_NAME, absent)


@dataclass(frozen=True, slots=True)
class GrantTarget:
    """A grant by its id; it lies where it holds."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[Grant]:
        grant = tx.grants.get(self.ref)
        if grant is None:
            raise missing("grant", self.ref)
        return Found(grant, _scope_of(tx, grant), grant.id, missing("grant", self.ref))


def _scope_of(tx: Transaction, grant: Grant) -> Scope:
    scope = scope_at(tx, grant.scope_id)
    if scope is None:
        raise missing("grant", grant.id)
    return scope


def grants_on(tx: Transaction, scope_id: str, principal_id: str) -> list[Grant]:
    """What the principal was given on this very scope."""
    return tx.grants.select(eq("scope_id", scope_id), eq("principal_id", principal_id))


def create_grant(unit: Unit, principal: Principal, scope: Scope, ref: str, role: str) -> Grant:
    """Give a user or service account a role on a scope.

    Raises:
        InvalidError: there is no such principal or role here.
        ForbiddenError: the role holds what the caller does not hold there.
        ConflictError: the principal has a role on this scope already.
    """
    chosen = choose_role(unit.tx, scope.organization_id, role)
    refuse_to_give(principal, chosen.permissions, scope, "role")
    receiver = _receiver(unit.tx, principal, scope, ref)
    known = grants_on(unit.tx, scope.id, receiver.id)
    if known:
        named = role_name(unit.tx, known[0].role)
        raise ConflictError(
            "grant-exists",
            f"{ref[:200]} has the role {named} there already",
            resolution="Change it, or remove it first.",
            errors=(FieldError("principal", "already-exists", f"has the role {named} on this scope"),),
        )
    grant = unit.tx.grants.insert(
        Grant(
            id=unit.new_id("grn"), principal_id=receiver.id, role=chosen.key, scope_id=scope.id, created_at=unit.now()
        )
    )
    tell(unit, "grant.created", grant, scope)
    return grant


def change_grant(unit: Unit, principal: Principal, grant: Grant, role: str) -> Grant:
    """Give another role in place of this one. Raises as `create_grant`, and `ConflictError` for the last owner's."""
    scope = _scope_of(unit.tx, grant)
    chosen = choose_role(unit.tx, scope.organization_id, role)
    refuse_to_give(principal, _permissions(unit.tx, grant) | chosen.permissions, scope, "role")
    if chosen.key == grant.role:
        return grant
    _keep_an_owner(unit.tx, grant)
    changed = unit.tx.grants.update(replace(grant, role=chosen.key))
    tell(unit, "grant.changed", changed, scope)
    return changed


def delete_grant(unit: Unit, principal: Principal, grant: Grant) -> None:
    """Take a role away.

    Raises:
        ForbiddenError: it holds what the caller does not hold there.
        ConflictError: it is the last owner's.
    """
    scope = _scope_of(unit.tx, grant)
    refuse_to_give(principal, _permissions(unit.tx, grant), scope, "grant")
    _keep_an_owner(unit.tx, grant)
    unit.tx.grants.delete(grant.id)
    tell(unit, "grant.deleted", grant, scope)


def forget_grants(unit: Unit, scope_id: str) -> None:
    """Remove what was given on a scope that goes."""
    for grant in unit.tx.grants.select(eq("scope_id", scope_id)):
        unit.tx.grants.delete(grant.id)


def tell(unit: Unit, type_: str, grant: Grant, scope: Scope) -> None:
    """Write an event about a grant."""
    unit.emit(
        type_,
        grant.id,
        organization_id=scope.organization_id,
        project_id=scope.project_id,
        data={
            "principal": grant.principal_id,
            "role": role_name(unit.tx, grant.role),
            "scope": grant.scope_id or SYSTEM_NAME,
        },
    )


def _permissions(tx: Transaction, grant: Grant) -> frozenset[str]:
    """What a grant gives; one of a role that is gone gives nothing."""
    custom = None if grant.role in iam.ROLES else tx.roles.get(grant.role)
    return iam.ROLES.get(grant.role) or frozenset(custom.permissions if custom else ())


def _keep_an_owner(tx: Transaction, grant: Grant) -> None:
    """Refuse to lose the last user who owns an organization, or the platform."""
    owned = not grant.scope_id or is_id("org", grant.scope_id)
    if not (owned and grant.role == iam.OWNER and is_id("usr", grant.principal_id)):
        return
    owners = tx.grants.select(eq("scope_id", grant.scope_id), eq("role", iam.OWNER))
    if not any(is_id("usr", other.principal_id) and other.id != grant.id for other in owners):
        raise ConflictError(
            "last-owner", "the last owner stays", resolution="Make somebody else an owner first, or delete it all."
        )


def _receiver(tx: Transaction, principal: Principal, scope: Scope, ref: str) -> User | ServiceAccount:
    """Who is to get a role: a service account or a member of the organization, whom those who made him one know by his
    address. Who runs the platform may name any user, by the id alone: anybody who owns an organization can have an account
    made for an address that is not his. To others, users of other organizations do not exist.

    Raises:
        InvalidError: there is none such, or he is to be named by his id.
    """
    everybody = iam.allowed(principal, "members:write", ("",))
    if is_id("svc", ref):
        account = tx.service_accounts.get(ref)
        if account is not None and account.organization_id == scope.organization_id:
            return account
    else:
        by_id, user = is_id("usr", ref), find_user(tx, ref)
        if user is not None and (is_member(tx, scope.organization_id, user.id) or (everybody and by_id)):
            return user
        if everybody and not by_id:
            _refuse_by_email(scope)
    message = "there is no such member or service account here"
    resolution = "Users join an organization by invitation; then they can get roles on what is in it."
    refuse("no-such-principal", (FieldError("principal", "unknown", message),), resolution=resolution)
    raise AssertionError("refused above")


def _refuse_by_email(scope: Scope) -> None:
    """The same whether anybody has the address: whoever has is not known to be the one who is meant."""
    where = "no member of this organization has this email" if scope.organization_id else "nobody has proved his email"
    message = f"{where}; others are named by their ids, since an account may be made for anybody's address"
    resolution = "Have him tell you the id that “swg whoami” shows him (usr_…), and give that."
    refuse("principal-by-id", (FieldError("principal", "by-id", message),), resolution=resolution)


def is_member(tx: Transaction, organization_id: str, user_id: str) -> bool:
    """Whether the user has any role in the organization."""
    return bool(organization_id) and bool(grants_within(tx, organization_id, user_id))


def grants_within(tx: Transaction, organization_id: str, principal_id: str) -> list[Grant]:
    """What the principal was given on the organization and on all below it."""
    mine = tx.grants.select(eq("principal_id", principal_id))
    scopes = {grant.scope_id: scope_at(tx, grant.scope_id) for grant in mine}
    return [grant for grant in mine if (scope := scopes[grant.scope_id]) and scope.organization_id == organization_id]
