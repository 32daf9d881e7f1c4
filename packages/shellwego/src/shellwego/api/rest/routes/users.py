"""Users, for the platform's operator."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing
from shellwego.api.rest.routes.common import Ref, resource_router
from shellwego.api.rest.schemas.account import PersonList, PersonUpdate, PersonView, person_view
from shellwego.api.rest.schemas.common import pagination
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.targets import SystemTarget
from shellwego.control.unit import Unit
from shellwego.control.users import UserTarget, set_disabled
from shellwego.core.tenancy import User
from shellwego.ports.store import Transaction

router = resource_router("users")
_SORTS: dict[str, type[str] | type[float]] = {"email": str, "id": str}


@operation(router, "GET", "/users", permission="users:read", answer=PersonList)
async def list_users(*, access: Granted, listing: Listing) -> Response:
    """All users of the platform."""
    request = listing.page(_SORTS, "email")

    def look(tx: Transaction, _: None) -> Answer:
        found = page(tx.users, request)
        views = [person_view(user, tx.credentials.get(user.id)) for user in found.items]
        return body_answer(PersonList(data=views, pagination=pagination(found)))

    return await read(access, SystemTarget(), look)


@operation(router, "GET", "/users/{user}", permission="users:read", answer=PersonView)
async def get_user_of_platform(*, access: Granted, user: Ref) -> Response:
    """One user, by id or email."""

    def look(tx: Transaction, row: User) -> Answer:
        return body_answer(person_view(row, tx.credentials.get(row.id)), version=row.version)

    return await read(access, UserTarget(user), look)


@operation(router, "PATCH", "/users/{user}", permission="users:write", answer=PersonView, refusals=(412,))
async def update_user_of_platform(*, access: Granted, user: Ref, body: PersonUpdate, if_match: IfMatch) -> Response:
    """Disable a user: his tokens and his password hold no more, within a second. Or enable him again."""

    def work(unit: Unit, row: User) -> Answer:
        if_match.check(row.version)
        changed = set_disabled(unit, access.principal, row, disabled=body.disabled)
        return body_answer(person_view(changed, unit.tx.credentials.get(row.id)), version=changed.version)

    return await write(access, UserTarget(user), work)
