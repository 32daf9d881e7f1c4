"""Service accounts of an organization, and their tokens."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, refuse_key, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing
from shellwego.api.rest.routes.common import Id, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.tenancy import (
    NewServiceTokenView,
    ServiceAccountCreate,
    ServiceAccountList,
    ServiceAccountPatch,
    ServiceAccountView,
    ServiceTokenCreate,
    ServiceTokenList,
    ServiceTokenView,
    new_service_token_view,
    service_account_view,
    service_token_view,
)
from shellwego.control import serviceaccounts
from shellwego.control.authentication import new_secret
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.serviceaccounts import find_account
from shellwego.control.targets import OrganizationTarget
from shellwego.control.tokens import TokenWish
from shellwego.control.unit import Unit
from shellwego.core.tenancy import Organization, ServiceAccount, TokenKind
from shellwego.ports.store import Transaction, eq

router = resource_router("service accounts")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "id": str}
_TOKEN_SORTS: dict[str, type[str] | type[float]] = {"id": str}
_ACCOUNTS = "/organizations/{organization}/service-accounts"
_ACCOUNT = f"{_ACCOUNTS}/{{account}}"


@operation(router, "POST", _ACCOUNTS, permission="service-accounts:write", answer=ServiceAccountView, status=201)
async def create_service_account(*, access: Granted, organization: Ref, body: ServiceAccountCreate) -> Response:
    """Make a service account. It may nothing until it is granted a role."""

    def work(unit: Unit, row: Organization) -> Answer:
        made = serviceaccounts.create_account(unit, row, body.name, body.description)
        return body_answer(service_account_view(made), 201, made.version)

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "GET", _ACCOUNTS, permission="service-accounts:read", answer=ServiceAccountList)
async def list_service_accounts(*, access: Granted, listing: Listing, organization: Ref) -> Response:
    """The service accounts of an organization."""
    request = listing.page(_SORTS, "name")

    def look(tx: Transaction, row: Organization) -> Answer:
        found = page(tx.service_accounts, request, eq("organization_id", row.id))
        views = [service_account_view(account) for account in found.items]
        return body_answer(ServiceAccountList(data=views, pagination=pagination(found)))

    return await read(access, OrganizationTarget(organization), look)


@operation(router, "GET", _ACCOUNT, permission="service-accounts:read", answer=ServiceAccountView)
async def get_service_account(*, access: Granted, organization: Ref, account: Ref) -> Response:
    """One service account, by id or name."""
    return await read(access, OrganizationTarget(organization), lambda tx, row: _show(find_account(tx, row, account)))


@operation(router, "PATCH", _ACCOUNT, permission="service-accounts:write", answer=ServiceAccountView, refusals=(412,))
async def change_service_account(
    *, access: Granted, match: IfMatch, organization: Ref, account: Ref, body: ServiceAccountPatch
) -> Response:
    """Rename or describe a service account."""

    def work(unit: Unit, row: Organization) -> Answer:
        found = find_account(unit.tx, row, account)
        match.check(found.version)
        return _show(serviceaccounts.change_account(unit, found, name=body.name, description=body.description))

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "DELETE", _ACCOUNT, permission="service-accounts:write", answer=None, status=204)
async def delete_service_account(*, access: Granted, organization: Ref, account: Ref) -> Response:
    """Remove a service account; its tokens are void within a second."""

    def work(unit: Unit, row: Organization) -> Answer:
        serviceaccounts.delete_account(unit, find_account(unit.tx, row, account))
        return Answer(204, "")

    return await write(access, OrganizationTarget(organization), work)


@operation(router, "GET", f"{_ACCOUNT}/tokens", permission="service-accounts:read", answer=ServiceTokenList)
async def list_service_account_tokens(
    *, access: Granted, listing: Listing, organization: Ref, account: Ref
) -> Response:
    """The tokens of a service account, without their secrets."""
    request = listing.page(_TOKEN_SORTS, "id")

    def look(tx: Transaction, row: Organization) -> Answer:
        found = page(tx.tokens, request, eq("principal_id", find_account(tx, row, account).id))
        views = [service_token_view(token) for token in found.items]
        return body_answer(ServiceTokenList(data=views, pagination=pagination(found)))

    return await read(access, OrganizationTarget(organization), look)


@operation(
    router, "POST", f"{_ACCOUNT}/tokens", permission="service-accounts:write", answer=NewServiceTokenView, status=201
)
async def create_service_account_token(
    *, access: Granted, organization: Ref, account: Ref, body: ServiceTokenCreate
) -> Response:
    """Make a token for a service account, which holds nothing that the caller does not. Its secret is told once."""
    refuse_key(access)
    secret = new_secret(TokenKind.SERVICE)
    wish = TokenWish(name=body.name, kind=TokenKind.SERVICE, scopes=tuple(body.scopes), life_s=body.expires_in)

    def work(unit: Unit, row: Organization) -> Answer:
        found = find_account(unit.tx, row, account)
        token = serviceaccounts.create_token(unit, access.principal, row, found, wish, secret=secret)
        return body_answer(new_service_token_view(token, secret), 201)

    return respond(await access.write(OrganizationTarget(organization), work))


@operation(
    router, "DELETE", f"{_ACCOUNT}/tokens/{{token}}", permission="service-accounts:write", answer=ServiceTokenView
)
async def revoke_service_account_token(*, access: Granted, organization: Ref, account: Ref, token: Id) -> Response:
    """Make a token of a service account void, within a second."""

    def work(unit: Unit, row: Organization) -> Answer:
        revoked = serviceaccounts.revoke_token(unit, find_account(unit.tx, row, account), token)
        return body_answer(service_token_view(revoked))

    return await write(access, OrganizationTarget(organization), work)


def _show(account: ServiceAccount) -> Answer:
    return body_answer(service_account_view(account), version=account.version)
