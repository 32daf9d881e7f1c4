"""Webhooks: who is told of events over HTTP, and what became of each telling."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, refuse_key, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Filter, Listing, Organization, Project, one_of
from shellwego.api.rest.routes.common import Here, Id, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.webhooks import (
    DeliveryList,
    DeliveryView,
    NewWebhookView,
    WebhookCreate,
    WebhookList,
    WebhookPatch,
    WebhookView,
    delivery_view,
    new_webhook_view,
    webhook_view,
)
from shellwego.control import webhooks
from shellwego.control.events import ScopeTarget, within_scope
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.scopes import Scope
from shellwego.control.targets import WebhookTarget
from shellwego.control.unit import Unit
from shellwego.control.webhooks import WebhookWish
from shellwego.core.sensitive import Sensitive
from shellwego.core.webhooks import Webhook
from shellwego.ports.store import Transaction, eq

router = resource_router("webhooks")
_SORTS: dict[str, type[str] | type[float]] = {"created_at": float}
_DELIVERY_SORTS: dict[str, type[str] | type[float]] = {"created_at": float, "seq": float}
States = Annotated[Filter, Query(alias="filter[state]", max_length=80, description="waiting, delivered, failed")]
Types = Annotated[Filter, Query(alias="filter[type]", max_length=400)]


@operation(router, "GET", "/webhooks", permission="webhooks:read", answer=WebhookList)
async def list_webhooks(
    *, access: Granted, listing: Listing, project: Project = "", organization: Organization = ""
) -> Response:
    """Webhooks in a project, in an organization with its projects, or in all that the token may see; the newest first."""
    request = listing.page(_SORTS, "created_at:desc")

    def look(tx: Transaction, scope: Scope) -> Answer:
        found = page(tx.webhooks, request, *within_scope(scope))
        views = [webhook_view(webhook) for webhook in found.items]
        return body_answer(WebhookList(data=views, pagination=pagination(found)))

    return await read(access, ScopeTarget(organization, project), look)


@operation(router, "POST", "/webhooks", permission="webhooks:write", answer=NewWebhookView, status=201)
async def create_webhook(
    *, here: Here, access: Granted, body: WebhookCreate, project: Project = "", organization: Organization = ""
) -> Response:
    """Have a receiver told of a project's events, or of an organization's and all its projects'. The secret that signs what
    it gets is in this answer only.

    Each delivery is a POST with the event as JSON, `X-ShellWeGo-Timestamp`, and `X-ShellWeGo-Signature: sha256=` the
    HMAC-SHA-256 of “timestamp.body” in hexadecimal. An event comes at least once; first attempts come in the order of
    `seq`. An answer that is not 2xx within ten seconds is tried again five times, over some four hours.
    """
    refuse_key(access)
    target = ScopeTarget(organization, project)
    place = await access.read(target, lambda tx, scope: scope)  # before anything is sealed for him
    id_, secret = here.control.clock.new_id("whk"), f"whsec_{secrets.token_urlsafe(32)}"
    sealing = await here.sealer.seal(Sensitive.of(secret), webhooks.secret_label(id_, place))
    wish = WebhookWish(url=body.url, events=tuple(body.events), active=body.active)

    def work(unit: Unit, scope: Scope) -> Answer:
        webhook = webhooks.create_webhook(unit, scope, wish, id_=id_, sealing=sealing, networks=here.webhook_networks)
        return body_answer(new_webhook_view(webhook, secret), 201, webhook.version)

    return respond(await access.write(target, work))


@operation(router, "GET", "/webhooks/{webhook}", permission="webhooks:read", answer=WebhookView)
async def get_webhook(*, access: Granted, webhook: Id) -> Response:
    """One webhook, without its secret."""
    return await read(
        access, WebhookTarget(webhook), lambda tx, row: body_answer(webhook_view(row), version=row.version)
    )


@operation(router, "PATCH", "/webhooks/{webhook}", permission="webhooks:write", answer=WebhookView, refusals=(412,))
async def update_webhook(
    *, here: Here, access: Granted, webhook: Id, body: WebhookPatch, if_match: IfMatch
) -> Response:
    """Change where it goes and of what it is told, or switch it off and on. What waits when it is switched off fails."""
    events = None if body.events is None else tuple(body.events)
    wish = WebhookWish(url=body.url, events=events, active=body.active)

    def work(unit: Unit, row: Webhook) -> Answer:
        if_match.check(row.version)
        changed = webhooks.update_webhook(unit, row, wish, here.webhook_networks)
        return body_answer(webhook_view(changed), version=changed.version)

    return await write(access, WebhookTarget(webhook), work)


@operation(
    router, "DELETE", "/webhooks/{webhook}", permission="webhooks:write", answer=None, status=204, refusals=(412,)
)
async def delete_webhook(*, access: Granted, webhook: Id, if_match: IfMatch) -> Response:
    """Remove a webhook with its deliveries."""

    def work(unit: Unit, row: Webhook) -> Answer:
        if_match.check(row.version)
        webhooks.delete_webhook(unit, row)
        return Answer(204, "")

    return await write(access, WebhookTarget(webhook), work)


@operation(
    router, "POST", "/webhooks/{webhook}/actions/test", permission="webhooks:write", answer=DeliveryView, status=202
)
async def test_webhook(*, access: Granted, webhook: Id) -> Response:
    """Send an event `webhook.test`, also where the webhook is switched off. Follow the delivery."""

    def work(unit: Unit, row: Webhook) -> Answer:
        return body_answer(delivery_view(webhooks.test_webhook(unit, row)), 202)

    return await write(access, WebhookTarget(webhook), work)


@operation(router, "GET", "/webhooks/{webhook}/deliveries", permission="webhooks:read", answer=DeliveryList)
async def list_deliveries(
    *, access: Granted, listing: Listing, webhook: Id, state: States = None, type_: Types = None
) -> Response:
    """What was sent to it or waits, the newest first. Finished ones are kept for a week, at most two thousand."""
    request = listing.page(_DELIVERY_SORTS, "created_at:desc")
    conditions = (*one_of("state", state), *one_of("type", type_))

    def look(tx: Transaction, row: Webhook) -> Answer:
        found = page(tx.deliveries, request, eq("webhook_id", row.id), *conditions)
        views = [delivery_view(delivery) for delivery in found.items]
        return body_answer(DeliveryList(data=views, pagination=pagination(found)))

    return await read(access, WebhookTarget(webhook), look)


@operation(router, "GET", "/webhooks/{webhook}/deliveries/{delivery}", permission="webhooks:read", answer=DeliveryView)
async def get_delivery(*, access: Granted, webhook: Id, delivery: Id) -> Response:
    """One delivery with its attempts."""

    def look(tx: Transaction, row: Webhook) -> Answer:
        found = webhooks.find_delivery(tx, row, delivery)
        return body_answer(delivery_view(found), version=found.version)

    return await read(access, WebhookTarget(webhook), look)


@operation(
    router,
    "POST",
    "/webhooks/{webhook}/deliveries/{delivery}/actions/redeliver",
    permission="webhooks:write",
    answer=DeliveryView,
    status=202,
)
async def redeliver(*, access: Granted, webhook: Id, delivery: Id) -> Response:
    """Send the same event again, as a new delivery; also where the webhook is switched off."""

    def work(unit: Unit, row: Webhook) -> Answer:
        return body_answer(delivery_view(webhooks.redeliver(unit, row, delivery)), 202)

    return await write(access, WebhookTarget(webhook), work)
