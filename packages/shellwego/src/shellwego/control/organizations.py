"""Organizations: tenants. Each begins with an owner and a project, and goes when nothing is left in it."""

from __future__ import annotations

from dataclasses import replace

from shellwego.control.grants import forget_grants
from shellwego.control.pages import Page, PageRequest, page
from shellwego.control.projects import add_project
from shellwego.control.quotas import forget_quota
from shellwego.control.scopes import organizations_of
from shellwego.control.serviceaccounts import delete_account
from shellwego.control.unit import Unit
from shellwego.control.webhooks import delete_webhook
from shellwego.core import hostnames, iam
from shellwego.core.errors import ConflictError, FieldError, ForbiddenError, QuotaError
from shellwego.core.ids import is_id
from shellwego.core.plans import FREE
from shellwego.core.tenancy import Grant, Organization, Principal
from shellwego.ports.store import Transaction, eq, within

FIRST_PROJECT = "default"
MAX_OWNED = 5
"""Organizations that one user may make for himself, where everybody may."""


def create_organization(unit: Unit, principal: Principal, name: str, *, operator: bool) -> Organization:
    """Make an organization with its first project; who makes it owns it. Its plan is the smallest until an operator says
    otherwise. `operator`: whether the maker may make as many as he likes.

    Raises:
        InvalidError: the name is none.
        ConflictError: the name is in use.
        ForbiddenError: a service account asks, which could own nothing.
        QuotaError: the user owns as many as he may.
    """
    if not is_id("usr", principal.principal_id):
        raise ForbiddenError("not-a-user", "only a user can own an organization, not a service account")
    mine = unit.tx.grants.select(eq("principal_id", principal.principal_id))
    owned = [grant for grant in mine if grant.role == iam.OWNER and is_id("org", grant.scope_id)]
    if not operator and len(owned) >= MAX_OWNED:
        fault = FieldError("organizations", "quota-exceeded", "as many as you may own", MAX_OWNED, len(owned))
        raise QuotaError("quota-exceeded", f"a user owns at most {MAX_OWNED} organizations", errors=(fault,))
    _check_name(unit.tx, name)
    organization = unit.tx.organizations.insert(
        Organization(id=unit.new_id("org"), name=name, plan=FREE, created_at=unit.now())
    )
    unit.tx.grants.insert(
        Grant(
            id=unit.new_id("grn"),
            principal_id=principal.principal_id,
            role=iam.OWNER,
            scope_id=organization.id,
            created_at=unit.now(),
        )
    )
    _tell(unit, "organization.created", organization)
    add_project(unit, organization, FIRST_PROJECT)
    return organization


def list_organizations(tx: Transaction, principal: Principal, request: PageRequest) -> Page[Organization]:
    """Those that the caller may see."""
    if iam.allowed(principal, "organizations:read", ("",)):
        return page(tx.organizations, request)
    seen = [
        organization.id
        for organization in organizations_of(tx, principal)
        if iam.allowed(principal, "organizations:read", ("", organization.id))
    ]
    return page(tx.organizations, request, within("id", seen))


def rename_organization(unit: Unit, organization: Organization, name: str) -> Organization:
    """Give it another name; ids and hostnames stay. Raises as `create_organization`."""
    if name == organization.name:
        return organization
    _check_name(unit.tx, name)
    renamed = unit.tx.organizations.update(replace(organization, name=name))
    _tell(unit, "organization.renamed", renamed)
    return renamed


def delete_organization(unit: Unit, organization: Organization) -> None:
    """Remove an organization with its members' grants, invitations, service accounts, roles, webhooks and quotas.

    Raises:
        ConflictError: it has projects, or is the platform's last.
    """
    if unit.tx.projects.select(eq("organization_id", organization.id), limit=1):
        raise ConflictError(
            "organization-not-empty",
            f"the organization {organization.name} has projects",
            resolution="Delete its projects first.",
        )
    if unit.tx.organizations.count() == 1:
        raise ConflictError("last-organization", "the platform's last organization stays")
    for account in unit.tx.service_accounts.select(eq("organization_id", organization.id)):
        delete_account(unit, account)
    forget_grants(unit, organization.id)
    for role in unit.tx.roles.select(eq("organization_id", organization.id)):
        unit.tx.roles.delete(role.id)
    for invitation in unit.tx.invitations.select(eq("organization_id", organization.id)):
        unit.tx.invitations.delete(invitation.id)
    for webhook in unit.tx.webhooks.select(eq("organization_id", organization.id)):
        delete_webhook(unit, webhook)
    forget_quota(unit, organization.id)
    unit.tx.organizations.delete(organization.id)
    _tell(unit, "organization.deleted", organization)


def _check_name(tx: Transaction, name: str) -> None:
    hostnames.check_name(name)
    if tx.organizations.select(eq("name", name), limit=1):
        fault = FieldError("name", "already-exists", "this name is in use on the platform")
        raise ConflictError("organization-exists", f"there is an organization “{name}” already", errors=(fault,))


def _tell(unit: Unit, type_: str, organization: Organization) -> None:
    unit.emit(type_, organization.id, organization_id=organization.id, data={"name": organization.name})
