"""Members: users with a role on an organization itself. What they have below it goes with them when they are removed."""

from __future__ import annotations

from dataclasses import dataclass

from shellwego.control.addresses import find_user
from shellwego.control.grants import change_grant, delete_grant, grants_on, grants_within
from shellwego.control.pages import Page, PageRequest, page
from shellwego.control.scopes import missing
from shellwego.control.unit import Unit
from shellwego.core.tenancy import Grant, Organization, Principal, User
from shellwego.ports.store import Op, Transaction, Where, eq

_USERS = (Where("principal_id", Op.GTE, "usr_"), Where("principal_id", Op.LT, "usr`"))
"""Ids that begin with `usr_`; service accounts hold grants, too."""


@dataclass(frozen=True, slots=True)
class Member:
    user: User
    grant: Grant


def list_members(tx: Transaction, organization: Organization, request: PageRequest) -> Page[Grant]:
    """The grants of users on the organization, one for each member."""
    return page(tx.grants, request, eq("scope_id", organization.id), *_USERS)


def member_of(tx: Transaction, grant: Grant) -> Member | None:
    """The member whose grant this is; None where the user is gone."""
    user = tx.users.get(grant.principal_id)
    return Member(user, grant) if user else None


def find_member(tx: Transaction, organization: Organization, ref: str) -> Member:
    """A member by the user's id or email; raises `NotFoundError`."""
    user = find_user(tx, ref)
    grants = grants_on(tx, organization.id, user.id) if user else []
    if user is None or not grants:
        raise missing("member", ref)
    return Member(user, grants[0])


def change_member(unit: Unit, principal: Principal, member: Member, role: str) -> Member:
    """Give a member another role on the organization; raises as `control.grants.change_grant`."""
    return Member(member.user, change_grant(unit, principal, member.grant, role))


def remove_member(unit: Unit, principal: Principal, organization: Organization, member: Member) -> None:
    """Take all roles in the organization from a member; raises as `control.grants.delete_grant`."""
    for grant in grants_within(unit.tx, organization.id, member.user.id):
        delete_grant(unit, principal, grant)
    unit.emit(
        "member.removed", member.user.id, organization_id=organization.id, data={"organization": organization.name}
    )
