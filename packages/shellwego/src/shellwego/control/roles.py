"""Roles: those that every organization has, and those that it made for itself.

A custom role is a list of single permissions. Nobody makes or changes one beyond what he holds in the organization himself,
before and after: else a role that somebody stronger made could be turned against him, or for everybody who has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shellwego.control.config import refuse
from shellwego.control.scopes import Scope, missing
from shellwego.control.unit import Unit
from shellwego.core import hostnames, iam
from shellwego.core.errors import ConflictError, FieldError, ForbiddenError
from shellwego.core.tenancy import Grant, Organization, Principal, Role
from shellwego.ports.store import Transaction, eq

MAX_ROLES = 100
"""Of one organization."""


@dataclass(frozen=True, slots=True)
class NamedRole:
    """A role as grants name it, with what it holds."""

    key: str
    name: str
    permissions: frozenset[str]


def roles_of(tx: Transaction, grants: Iterable[Grant]) -> Mapping[str, frozenset[str]]:
    """The custom roles that these grants name, by id."""
    keys = {grant.role for grant in grants if grant.role not in iam.ROLES}
    found = [role for key in keys if (role := tx.roles.get(key))]
    return {role.id: frozenset(role.permissions) for role in found}


def role_name(tx: Transaction, key: str) -> str:
    """The name of a grant's role; the key itself where the role is gone."""
    role = None if key in iam.ROLES else tx.roles.get(key)
    return role.name if role else key


def find_role(tx: Transaction, organization_id: str, ref: str) -> Role:
    """A custom role of the organization, by id or name; raises `NotFoundError`."""
    named = tx.roles.select(eq("organization_id", organization_id), eq("name", ref), limit=1)
    role = tx.roles.get(ref) or (named[0] if named else None)
    if role is None or role.organization_id != organization_id:
        raise missing("role", ref)
    return role


def choose_role(tx: Transaction, organization_id: str, ref: str) -> NamedRole:
    """The role that a request names: one that every organization has, or one of this organization's own.

    Raises:
        InvalidError: there is no such role.
    """
    if ref in iam.ROLES:
        return NamedRole(ref, ref, iam.ROLES[ref])
    named = tx.roles.select(eq("organization_id", organization_id), eq("name", ref), limit=1) if organization_id else []
    role = tx.roles.get(ref) or (named[0] if named else None)
    if role is None or role.organization_id != organization_id:
        known = ", ".join(iam.ROLES)
        refuse("no-such-role", (FieldError("role", "unknown", f"there is no such role here; everywhere are {known}"),))
        raise AssertionError("refused above")
    return NamedRole(role.id, role.name, frozenset(role.permissions))


def refuse_to_give(principal: Principal, permissions: Iterable[str], scope: Scope, field: str) -> None:
    """Refuse to pass on what the caller does not hold himself; raises `ForbiddenError`."""
    if iam.may_give(principal, permissions, scope.chain):
        return
    message = "it holds more than you do here, and nobody gives, changes or takes what he does not hold"
    raise ForbiddenError(
        "not-held",
        f"{field}: {message}",
        resolution="Ask somebody who holds it, such as an owner.",
        errors=(FieldError(field, "not-held", message),),
    )


def create_role(
    unit: Unit, principal: Principal, organization: Organization, name: str, permissions: Sequence[str]
) -> Role:
    """Make a custom role.

    Raises:
        InvalidError: a bad name, or permissions that there are not.
        ForbiddenError: permissions that the caller does not hold.
        ConflictError: the name is in use, or there are too many.
    """
    _check_name(unit.tx, organization, name)
    if unit.tx.roles.count(eq("organization_id", organization.id)) >= MAX_ROLES:
        raise ConflictError("too-many-roles", f"an organization has at most {MAX_ROLES} roles of its own")
    wanted = _checked(permissions)
    refuse_to_give(principal, wanted, Scope(organization.id), "permissions")
    role = unit.tx.roles.insert(
        Role(
            id=unit.new_id("rol"),
            organization_id=organization.id,
            name=name,
            permissions=wanted,
            created_at=unit.now(),
        )
    )
    _tell(unit, "role.created", role)
    return role


def change_role(
    unit: Unit,
    principal: Principal,
    organization: Organization,
    role: Role,
    *,
    name: str | None = None,
    permissions: Sequence[str] | None = None,
) -> Role:
    """Rename a custom role, or have it hold other permissions; who has it has them at once. Raises as `create_role`."""
    scope = Scope(organization.id)
    if name is not None and name != role.name:
        _check_name(unit.tx, organization, name)
    wanted = role.permissions if permissions is None else _checked(permissions)
    refuse_to_give(principal, {*role.permissions, *wanted}, scope, "permissions")
    changed = unit.tx.roles.update(replace(role, name=name or role.name, permissions=wanted))
    _tell(unit, "role.changed", changed)
    return changed


def delete_role(unit: Unit, principal: Principal, role: Role) -> None:
    """Remove a custom role.

    Raises:
        ConflictError: somebody has it.
        ForbiddenError: it holds what the caller does not.
    """
    refuse_to_give(principal, role.permissions, Scope(role.organization_id), "role")
    if unit.tx.grants.select(eq("role", role.id), limit=1):
        raise ConflictError(
            "role-in-use", f"somebody has the role “{role.name}”", resolution="Give them another role, or none, first."
        )
    unit.tx.roles.delete(role.id)
    _tell(unit, "role.deleted", role)


def _check_name(tx: Transaction, organization: Organization, name: str) -> None:
    hostnames.check_name(name)
    taken = name in iam.ROLES or tx.roles.select(eq("organization_id", organization.id), eq("name", name), limit=1)
    if taken:
        fault = FieldError("name", "already-exists", "a role of this name is there already")
        raise ConflictError("role-exists", f"the organization has a role “{name}” already", errors=(fault,))


def _checked(permissions: Sequence[str]) -> tuple[str, ...]:
    """Sorted, each once; raises `InvalidError`."""
    faults = tuple(
        FieldError(f"permissions[{number}]", "unknown", f"there is no permission “{each[:80]}”")
        for number, each in enumerate(permissions)
        if each not in iam.PERMISSIONS or each in iam.PLATFORM
    )
    resolution = f"There are: {', '.join(sorted(iam.PERMISSIONS - iam.PLATFORM))}."
    refuse("no-such-permission", faults, resolution=resolution)
    return tuple(sorted(set(permissions)))


def _tell(unit: Unit, type_: str, role: Role) -> None:
    data = {"name": role.name, "permissions": ", ".join(role.permissions)[:2000]}
    unit.emit(type_, role.id, organization_id=role.organization_id, data=data)
