"""Webhooks as their owners handle them. The signing secret comes in sealed: sealing asks the outside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from shellwego.control.config import refuse
from shellwego.control.deliveries import enqueue, event_body, give_up
from shellwego.control.events import last_seq
from shellwego.control.scopes import Scope, missing
from shellwego.control.sealing import Sealing, forget, keep
from shellwego.control.unit import Unit
from shellwego.core.egress import Network, parse_target
from shellwego.core.envelope import Label
from shellwego.core.errors import ConflictError, FieldError, InvalidError, MalformedError, QuotaError
from shellwego.core.events import Event
from shellwego.core.webhooks import (
    MAX_PATTERNS,
    MAX_WAITING,
    MAX_WEBHOOKS,
    TEST,
    Delivery,
    DeliveryState,
    Webhook,
    is_pattern,
)
from shellwego.ports.store import Transaction, Where, eq
from shellwego.wire import subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookWish:
    """What its owner may set; None: as it is, or the default."""

    url: str | None = None
    events: tuple[str, ...] | None = None
    active: bool | None = None


def secret_label(id_: str, scope: Scope) -> Label:
    """Under which a webhook's signing secret is sealed."""
    return Label(purpose="webhook", subject=id_, organization_id=scope.organization_id, project_id=scope.project_id)


def create_webhook(
    unit: Unit, scope: Scope, wish: WebhookWish, *, id_: str, sealing: Sealing, networks: Iterable[Network]
) -> Webhook:
    """A new webhook of the scope, told of what happens from now on.

    Raises:
        InvalidError: URL or events make no sense, or the URL is not allowed.
        MalformedError: the scope is the platform as a whole.
        UnavailableError: the master key was rotated meanwhile.
        QuotaError: the scope has as many as it may.
    """
    if not scope.organization_id:
        raise MalformedError(
            "scope-needed",
            "a webhook belongs to a project or an organization",
            resolution="Add ?project= or ?organization=.",
        )
    _check(wish, tuple(networks))
    if unit.tx.webhooks.count(*_exactly(scope)) >= MAX_WEBHOOKS:
        raise QuotaError("webhook-limit", f"a scope has at most {MAX_WEBHOOKS} webhooks", resolution="Delete one.")
    webhook = unit.tx.webhooks.insert(
        Webhook(
            id=id_,
            organization_id=scope.organization_id,
            project_id=scope.project_id,
            url=wish.url or "",
            events=wish.events or (),
            active=wish.active is not False,
            sealed_secret=keep(unit, sealing),
            since_seq=last_seq(unit.tx),
            created_at=unit.now(),
            created_by=unit.caller.actor,
        )
    )
    _announce(unit, webhook, "webhook.created")
    return webhook


def update_webhook(unit: Unit, webhook: Webhook, wish: WebhookWish, networks: Iterable[Network]) -> Webhook:
    """Change a webhook. Switched on, it is told of what happens from then on, and what it failed at is forgotten.

    Raises:
        InvalidError: as `create_webhook`.
    """
    _check(wish, tuple(networks))
    changed = replace(
        webhook,
        url=webhook.url if wish.url is None else wish.url,
        events=webhook.events if wish.events is None else wish.events,
    )
    if wish.active and not webhook.active:
        changed = replace(changed, active=True, since_seq=last_seq(unit.tx), failing_since=None, disabled_reason="")
    elif wish.active is False and webhook.active:
        changed = replace(changed, active=False)
        give_up(unit, webhook, "the webhook was switched off")
    stored = unit.tx.webhooks.update(changed)
    _announce(unit, stored, "webhook.updated")
    return stored


def delete_webhook(unit: Unit, webhook: Webhook) -> None:
    """Remove a webhook with its deliveries."""
    for delivery in unit.tx.deliveries.select(eq("webhook_id", webhook.id)):
        unit.tx.deliveries.delete(delivery.id)
    forget(unit, webhook.sealed_secret.key_id)
    unit.tx.webhooks.delete(webhook.id)
    _announce(unit, webhook, "webhook.deleted")


def test_webhook(unit: Unit, webhook: Webhook) -> Delivery:
    """Send it an event that never happened, also where it is switched off.

    Raises:
        ConflictError: too many deliveries wait already.
    """
    event = Event(
        id=unit.new_id("evt"),
        time=unit.now(),
        organization_id=webhook.organization_id,
        project_id=webhook.project_id,
        type=TEST,
        resource=webhook.id,
        actor=unit.caller.actor,
        trace_id=unit.caller.trace_id,
    )
    return _enqueue_by_hand(unit, webhook, event_id=event.id, seq=0, type_=TEST, body=event_body(event))


def find_delivery(tx: Transaction, webhook: Webhook, id_: str) -> Delivery:
    """A delivery of this webhook; raises `NotFoundError`."""
    delivery = tx.deliveries.get(id_)
    if delivery is None or delivery.webhook_id != webhook.id:
        raise missing("delivery", id_)
    return delivery


def redeliver(unit: Unit, webhook: Webhook, id_: str) -> Delivery:
    """Send the same event again, as a delivery of its own; also where the webhook is switched off.

    Raises:
        NotFoundError: the webhook has no such delivery.
        ConflictError: it still waits, or too many wait already.
    """
    delivery = find_delivery(unit.tx, webhook, id_)
    if delivery.state is DeliveryState.WAITING:
        raise ConflictError(
            "delivery-waiting", "the delivery is still to be tried", resolution="Wait until it is delivered or failed."
        )
    return _enqueue_by_hand(
        unit, webhook, event_id=delivery.event_id, seq=delivery.seq, type_=delivery.type, body=delivery.body
    )


def _enqueue_by_hand(unit: Unit, webhook: Webhook, *, event_id: str, seq: int, type_: str, body: str) -> Delivery:
    waiting = unit.tx.deliveries.count(eq("webhook_id", webhook.id), eq("state", DeliveryState.WAITING.value))
    if waiting >= MAX_WAITING:
        raise ConflictError(
            "too-many-waiting", f"{waiting} deliveries of the webhook wait already", resolution="Try again later."
        )
    unit.hint(subjects.EVENTS)
    return enqueue(unit, webhook, event_id=event_id, seq=seq, type_=type_, body=body)


def _exactly(scope: Scope) -> tuple[Where, Where]:
    return (eq("organization_id", scope.organization_id), eq("project_id", scope.project_id))


def _check(wish: WebhookWish, networks: tuple[Network, ...]) -> None:
    faults: list[FieldError] = []
    if wish.url is not None:
        try:
            parse_target(wish.url, networks)
        except InvalidError as error:
            faults += error.errors
    patterns = wish.events or ()
    if len(patterns) > MAX_PATTERNS:
        faults.append(FieldError("events", "too-many", f"at most {MAX_PATTERNS} types"))
    faults += [
        FieldError("events", "bad-type", f"“{pattern[:80]}” is neither a type of events nor one ending in .*")
        for pattern in patterns
        if not is_pattern(pattern)
    ]
    refuse("webhook-refused", tuple(faults))


def _announce(unit: Unit, webhook: Webhook, type_: str) -> None:
    """Without its URL, which may hold a password of the receiver's."""
    unit.emit(type_, webhook.id, organization_id=webhook.organization_id, project_id=webhook.project_id)
