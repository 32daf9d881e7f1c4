"""Webhooks and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, Pagination, View, when, when_or_none
from shellwego.core.egress import MAX_URL
from shellwego.core.webhooks import MAX_PATTERNS, Delivery, DeliveryState, Webhook

Url = Annotated[str, Field(min_length=1, max_length=MAX_URL, examples=["https://example.org/hooks/shellwego"])]
Types = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=100, examples=["app.deployment.*"])]],
    Field(max_length=MAX_PATTERNS),
]


class WebhookCreate(Body):
    """Who is to be told of what. Only https, and only public addresses, unless the operator allows more."""

    url: Url
    events: Types = Field(default_factory=list)
    """Types of events, or `app.deployment.*`; empty: all."""
    active: bool = True


class WebhookPatch(Body):
    """What is left out stays. Switched on again, it is told of what happens from then on."""

    url: Url | None = None
    events: Types | None = None
    active: bool | None = None


class WebhookView(View):
    """`disabled_reason` tells why the platform switched it off: after a day of failures, or a receiver far behind."""

    id: str
    organization_id: str
    project_id: str | None
    url: str
    events: list[str]
    active: bool
    disabled_reason: str | None
    failing_since: datetime | None
    created_at: datetime
    created_by: str


class WebhookList(View):
    data: list[WebhookView]
    pagination: Pagination


class NewWebhookView(WebhookView):
    """A webhook, with the secret that signs its deliveries for the only time."""

    secret: str


class AttemptView(View):
    """`status` is absent where there was no answer."""

    at: datetime
    status: int | None
    reason: str
    seconds: float


class DeliveryView(View):
    """One event on its way to a webhook: `waiting` (again at `next_at`), `delivered` or `failed`. `seq` is the event's, and
    0 for a test; `body` is what is sent."""

    id: str
    webhook_id: str
    event_id: str
    seq: int
    type: str
    state: str
    attempts: list[AttemptView]
    next_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    body: str


class DeliveryList(View):
    data: list[DeliveryView]
    pagination: Pagination


def webhook_view(webhook: Webhook) -> WebhookView:
    return WebhookView(
        id=webhook.id,
        organization_id=webhook.organization_id,
        project_id=webhook.project_id or None,
        url=webhook.url,
        events=list(webhook.events),
        active=webhook.active,
        disabled_reason=webhook.disabled_reason or None,
        failing_since=when_or_none(webhook.failing_since),
        created_at=when(webhook.created_at),
        created_by=webhook.created_by,
    )


def new_webhook_view(webhook: Webhook, secret: str) -> NewWebhookView:
    return NewWebhookView(secret=secret, **webhook_view(webhook).model_dump())


def delivery_view(delivery: Delivery) -> DeliveryView:
    attempts = [
        AttemptView(at=when(each.at), status=each.status, reason=each.reason, seconds=each.seconds)
        for each in delivery.attempts
    ]
    return DeliveryView(
        id=delivery.id,
        webhook_id=delivery.webhook_id,
        event_id=delivery.event_id,
        seq=delivery.seq,
        type=delivery.type,
        state=delivery.state.value,
        attempts=attempts,
        next_at=when(delivery.next_at) if delivery.state is DeliveryState.WAITING else None,
        created_at=when(delivery.created_at),
        finished_at=when_or_none(delivery.finished_at),
        body=delivery.body,
    )
