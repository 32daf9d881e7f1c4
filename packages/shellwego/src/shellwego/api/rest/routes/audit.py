"""The audit record: list, export, verification."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read, respond
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Filter, Listing, Organization, Project, Since, Until, between, one_of
from shellwego.api.rest.pieces import Pieces
from shellwego.api.rest.rights import renew, while_allowed
from shellwego.api.rest.routes.common import Here, resource_router
from shellwego.api.rest.schemas.audit import (
    AuditExportEnd,
    AuditList,
    AuditVerification,
    audit_view,
    verification_view,
)
from shellwego.api.rest.schemas.common import pagination
from shellwego.control import audit
from shellwego.control.events import ScopeTarget, within_scope
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.scopes import Scope
from shellwego.core.errors import ShellWeGoError
from shellwego.ports.store import Transaction

router = resource_router("audit")
NDJSON = "application/x-ndjson"
_SORTS: dict[str, type[str] | type[float]] = {"time": float}
_VERIFY_S = 600
Anchor = Annotated[str, Query(max_length=160, description="A head of an earlier verification, as position:hash.")]
Actors = Annotated[Filter, Query(alias="filter[actor]", max_length=400)]
Actions = Annotated[Filter, Query(alias="filter[action]", max_length=400)]
Resources = Annotated[Filter, Query(alias="filter[resource]", max_length=400)]


@operation(router, "GET", "/audit", permission="audit:read", answer=AuditList)
async def list_audit(
    *,
    access: Granted,
    listing: Listing,
    project: Project = "",
    organization: Organization = "",
    actor: Actors = None,
    action: Actions = None,
    resource: Resources = None,
    since: Since = None,
    until: Until = None,
) -> Response:
    """Who did what, or was refused it, the newest first: in a project, an organization, or all that the token may see."""
    request = listing.page(_SORTS, "time:desc")
    conditions = (
        *one_of("actor", actor),
        *one_of("action", action),
        *one_of("resource", resource),
        *between(since, until),
    )

    def look(tx: Transaction, scope: Scope) -> Answer:
        found = page(tx.audit, request, *within_scope(scope), *conditions)
        views = [audit_view(record) for record in found.items]
        return body_answer(AuditList(data=views, pagination=pagination(found)))

    return await read(access, ScopeTarget(organization, project), look)


@operation(router, "GET", "/audit/export", permission="audit:read", answer=None, media_type=NDJSON)
async def export_audit(
    *,
    here: Here,
    access: Granted,
    project: Project = "",
    organization: Organization = "",
    since: Since = None,
    until: Until = None,
) -> Response:
    """All chained records, each a line of JSON as in the list, chain by chain, the oldest first. The last line has
    `complete` and `records`; an export without it was cut off."""
    target = ScopeTarget(organization, project)
    await access.read(target, lambda tx, scope: None)  # refuses now what the stream could not refuse any more

    async def lines() -> AsyncGenerator[str]:
        count = 0
        try:
            async for batch in audit.export(access, target, between(since, until)):
                count += len(batch)
                yield "".join(f"{audit_view(record).model_dump_json()}\n" for record in batch)
                await renew(here, access)
        except ShellWeGoError:  # he may not read on, or the store cannot be read: the last line is missing then
            return
        yield f"{AuditExportEnd(complete=True, records=count).model_dump_json()}\n"

    return Pieces(lines(), media_type=NDJSON)


@operation(router, "GET", "/audit/verify", permission="audit:read", answer=AuditVerification, seconds=_VERIFY_S)
async def verify_audit(
    *, here: Here, access: Granted, project: Project = "", organization: Organization = "", anchor: Anchor = ""
) -> Response:
    """Whether the chain of the organization holds, or all chains for the platform as a whole; the first break is named.
    What was cut off from the end together with all its traces shows only against an anchor."""
    target = ScopeTarget(organization, project)
    found = await while_allowed(here, access, target, audit.verify(access, target, audit.parse_anchor(anchor)))
    return respond(body_answer(verification_view(found)))
