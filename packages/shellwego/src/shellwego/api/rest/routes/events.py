"""Events, as a list and as a stream, and the audit record."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Header, Query
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project, one_of
from shellwego.api.rest.routes.common import Here, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.resources import (
    AuditList,
    EventList,
    audit_view,
    event_view,
)
from shellwego.api.rest.sse import EVENT_STREAM, EventStream, message
from shellwego.control.events import (
    ScopeTarget,
    events_after,
    follow,
    last_seq,
    published,
    within_scope,
)
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.scopes import Scope, SystemTarget
from shellwego.core.errors import MalformedError
from shellwego.core.events import Event
from shellwego.ports.store import Op, Transaction, Where

router = resource_router("events")
_EVENT_SORTS: dict[str, type[str] | type[float]] = {"seq": float, "time": float}
_AUDIT_SORTS: dict[str, type[str] | type[float]] = {"time": float}
_MAX_SEQ = 2**62

Organization = Annotated[str, Query(max_length=255, description="Id or name.")]
Filter = str | None
Since = Annotated[float | None, Query(alias="filter[time][gte]", ge=0, le=1e11, allow_inf_nan=False)]
Until = Annotated[float | None, Query(alias="filter[time][lte]", ge=0, le=1e11, allow_inf_nan=False)]


def _between(since: float | None, until: float | None) -> tuple[Where, ...]:
    bounds = (("time", Op.GTE, since), ("time", Op.LTE, until))
    return tuple(Where(field, op, value) for field, op, value in bounds if value is not None)


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
        *_between(since, until),
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
    """Events as server-sent events, as they come out; the id is the event's `seq`, so `Last-Event-ID` resumes."""
    target = ScopeTarget(organization, project)
    newest = await access.read(target, lambda tx, scope: last_seq(tx))
    seq = newest if last_event_id is None else _parse_seq(last_event_id)

    async def batch(after: int) -> list[Event]:
        access.principal = await here.authenticator.refresh(access.principal)
        return await access.read(target, lambda tx, scope: events_after(tx, scope, after))

    async def messages() -> AsyncGenerator[bytes]:
        async for event in follow(here.control, batch, seq):
            yield message(event_view(event).model_dump_json(), event=event.type, id_=str(event.seq))

    return EventStream(messages(), here)


def _parse_seq(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _MAX_SEQ):
        raise MalformedError("bad-event-id", "Last-Event-ID is the number of an event")
    return int(text)


@operation(router, "GET", "/audit", permission="audit:read", answer=AuditList)
async def list_audit(
    *,
    access: Granted,
    listing: Listing,
    actor: Annotated[Filter, Query(alias="filter[actor]", max_length=400)] = None,
    action: Annotated[Filter, Query(alias="filter[action]", max_length=400)] = None,
    resource: Annotated[Filter, Query(alias="filter[resource]", max_length=400)] = None,
    since: Since = None,
    until: Until = None,
) -> Response:
    """Who did what, or was refused it, the newest first. For the platform as a whole."""
    request = listing.page(_AUDIT_SORTS, "time:desc")
    conditions = (
        *one_of("actor", actor),
        *one_of("action", action),
        *one_of("resource", resource),
        *_between(since, until),
    )

    def look(tx: Transaction, _: None) -> Answer:
        found = page(tx.audit, request, *conditions)
        views = [audit_view(record) for record in found.items]
        return body_answer(AuditList(data=views, pagination=pagination(found)))

    return await read(access, SystemTarget(), look)
