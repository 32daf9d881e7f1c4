"""Events, as a list and as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Header, Query
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Filter, Listing, Organization, Project, Since, Until, between, one_of
from shellwego.api.rest.rights import renew
from shellwego.api.rest.routes.common import Here, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.resources import EventList, event_view
from shellwego.api.rest.sse import EVENT_STREAM, EventStream, message
from shellwego.control.events import (
    ScopeTarget,
    follow,
    last_seq,
    published,
    resumed_after,
    within_scope,
)
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.scopes import Scope
from shellwego.core.errors import MalformedError
from shellwego.core.events import Event
from shellwego.ports.store import Transaction

router = resource_router("events")
_EVENT_SORTS: dict[str, type[str] | type[float]] = {"seq": float, "time": float}


@operation(router, "GET", "/events", permission="events:read", answer=EventList)
async def list_events(
    *,
    access: Granted,
    listing: Listing,
    project: Project = "",
    organization: Organization = "",
    type_: Annotated[Filter, Query(alias="filter[type]", max_length=400)] = None,
    severity: Annotated[Filter, Query(alias="filter[severity]", max_length=80)] = None,
    resource: Annotated[Filter, Query(alias="filter[resource]", max_length=400)] = None,
    actor: Annotated[Filter, Query(alias="filter[actor]", max_length=400)] = None,
    since: Since = None,
    until: Until = None,
) -> Response:
    """What happened, the newest first, in a project, an organization, or all that the token may see."""
    request = listing.page(_EVENT_SORTS, "seq:desc")
    conditions = (
        *one_of("type", type_),
        *one_of("severity", severity),
        *one_of("resource", resource),
        *one_of("actor", actor),
        *between(since, until),
    )

    def look(tx: Transaction, scope: Scope) -> Answer:
        found = page(tx.events, request, published(), *within_scope(scope), *conditions)
        views = [event_view(event) for event in found.items]
        return body_answer(EventList(data=views, pagination=pagination(found)))

    return await read(access, ScopeTarget(organization, project), look)


@operation(router, "GET", "/events/stream", permission="events:read", answer=None, media_type=EVENT_STREAM)
async def stream_events(
    *,
    here: Here,
    access: Granted,
    project: Project = "",
    organization: Organization = "",
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)] = None,
) -> Response:
    """Events as server-sent events, as they come out; the id is the event's `seq`, so `Last-Event-ID` resumes. Where
    events after it are not kept any more, the first message is an event `events.pruned` in their place."""
    target = ScopeTarget(organization, project)
    newest = await access.read(target, lambda tx, scope: last_seq(tx))
    seq = newest if last_event_id is None else _parse_seq(last_event_id, newest)

    async def batch(after: int) -> list[Event]:
        await here.shares.turn(here.control.clock, access, here.stopping)
        await renew(here, access)
        return await access.read(target, lambda tx, scope: resumed_after(tx, scope, after))

    async def messages() -> AsyncGenerator[bytes]:
        async for event in follow(here.control, batch, seq):
            yield message(event_view(event).model_dump_json(), event=event.type, id_=str(event.seq))

    return EventStream(messages(), here)


def _parse_seq(text: str, newest: int) -> int:
    """A number that was never given is refused: a stream from there on would leave out what comes until then."""
    if not (text.isascii() and text.isdecimal()):
        raise MalformedError("bad-event-id", "Last-Event-ID is the number of an event")
    if int(text) > newest:
        raise MalformedError(
            "future-event-id",
            "Last-Event-ID is of an event that did not happen here",
            resolution="Start without it, or from 0 for all that is kept.",
        )
    return int(text)
