"""Deliveries: made of events, tried, and finished. What is promised stands in `core.webhooks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec

from shellwego.control.events import events_after, last_seq
from shellwego.control.marks import DISPATCHED, mark, set_mark
from shellwego.control.scopes import SYSTEM
from shellwego.control.unit import Unit
from shellwego.core.events import Event
from shellwego.core.webhooks import (
    FINISHED,
    KEPT,
    MAX_WAITING,
    Attempt,
    Delivery,
    DeliveryState,
    Webhook,
    is_hopeless,
    retry_after,
    signature,
    wants,
)
from shellwego.ports.store import Op, Order, Transaction, Where, eq, within
from shellwego.ports.webhooks import Outcome, Shipment

BATCH = 200
_WAITING = eq("state", DeliveryState.WAITING.value)
_FINISHED = within("state", [state.value for state in FINISHED])
_MAX_REASON = 300


def event_body(event: Event) -> str:
    """An event as receivers get it: the fields and names of the API."""
    view = {
        "id": event.id,
        "seq": event.seq,
        "type": event.type,
        "time": datetime.fromtimestamp(event.time, UTC).isoformat().replace("+00:00", "Z"),
        "organization_id": event.organization_id or None,
        "project_id": event.project_id or None,
        "resource": event.resource,
        "actor": event.actor,
        "severity": event.severity,
        "data": dict(event.data),
        "trace_id": event.trace_id,
    }
    return msgspec.json.encode(view).decode()


def has_undispatched(tx: Transaction) -> bool:
    """Whether there are events that no webhook was asked about yet."""
    return last_seq(tx) > mark(tx, DISPATCHED)


def dispatch(unit: Unit) -> None:
    """Make the deliveries of the next events, at most `BATCH` of them, and remember how far that went."""
    if not unit.tx.webhooks.select(limit=1):
        set_mark(unit.tx, DISPATCHED, last_seq(unit.tx))
        return
    events = events_after(unit.tx, SYSTEM, mark(unit.tx, DISPATCHED), BATCH)
    organizations = sorted({event.organization_id for event in events if event.organization_id})
    webhooks = unit.tx.webhooks.select(within("organization_id", organizations)) if organizations else []
    for webhook in webhooks:
        _dispatch_to(unit, webhook, [event for event in events if wants(webhook, event)])
    if events:
        set_mark(unit.tx, DISPATCHED, events[-1].seq)


def _dispatch_to(unit: Unit, webhook: Webhook, events: Sequence[Event]) -> None:
    """Queue events for a webhook; one that is too far behind is switched off instead, so that nothing grows without end."""
    if not events:
        return
    waiting = unit.tx.deliveries.count(eq("webhook_id", webhook.id), _WAITING)
    if waiting + len(events) > MAX_WAITING:
        disable(unit, webhook, f"its receiver is too slow: {waiting} deliveries wait")
        return
    for event in events:
        enqueue(unit, webhook, event_id=event.id, seq=event.seq, type_=event.type, body=event_body(event))


def enqueue(unit: Unit, webhook: Webhook, *, event_id: str, seq: int, type_: str, body: str) -> Delivery:
    """A new delivery, due now. The oldest finished one goes where more would be kept than may be."""
    if unit.tx.deliveries.count(eq("webhook_id", webhook.id)) >= KEPT:
        oldest = Order("created_at")
        for old in unit.tx.deliveries.select(eq("webhook_id", webhook.id), _FINISHED, order=oldest, limit=2):
            unit.tx.deliveries.delete(old.id)
    return unit.tx.deliveries.insert(
        Delivery(
            id=unit.new_id("dlv"),
            webhook_id=webhook.id,
            event_id=event_id,
            seq=seq,
            type=type_,
            body=body,
            next_at=unit.now(),
            created_at=unit.now(),
        )
    )


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt that is due."""

    webhook: Webhook
    delivery: Delivery


def due_webhooks(tx: Transaction, busy: frozenset[str]) -> list[Webhook]:
    """Webhooks that have something to be tried now, those that are `busy` left out."""
    due = tx.deliveries.select(_WAITING, _is_due(tx), order=Order("next_at"), limit=BATCH)
    found = sorted({delivery.webhook_id for delivery in due} - busy)
    if not found and len(due) == BATCH:  # what many wait for hides what others wait for
        return [webhook for webhook in tx.webhooks.select() if webhook.id not in busy and next_job(tx, webhook.id)]
    return tx.webhooks.select(within("id", found)) if found else []


def next_job(tx: Transaction, webhook_id: str) -> Job | None:
    """Of what is due for the webhook, the earliest event."""
    webhook = tx.webhooks.get(webhook_id)
    due = tx.deliveries.select(eq("webhook_id", webhook_id), _WAITING, _is_due(tx), order=Order("seq"), limit=1)
    return Job(webhook, due[0]) if webhook and due else None


def _is_due(tx: Transaction) -> Where:
    return Where("next_at", Op.LTE, tx.now())


def shipment(job: Job, secret: str, timestamp: int) -> Shipment:
    """What goes to the receiver."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "ShellWeGo-Webhooks",
        "X-ShellWeGo-Event": job.delivery.type,
        "X-ShellWeGo-Delivery": job.delivery.id,
        "X-ShellWeGo-Timestamp": str(timestamp),
        "X-ShellWeGo-Signature": signature(secret, timestamp, job.delivery.body),
    }
    return Shipment(job.webhook.url, headers, job.delivery.body.encode())


def conclude(unit: Unit, job: Job, outcome: Outcome, jitter: float) -> None:
    """Write down how an attempt went, unless somebody deleted or finished the delivery meanwhile."""
    delivery = unit.tx.deliveries.get(job.delivery.id)
    webhook = unit.tx.webhooks.get(job.webhook.id)
    if delivery is None or webhook is None or delivery.version != job.delivery.version:
        return
    now = unit.now()
    attempt = Attempt(now, outcome.status, outcome.reason[:_MAX_REASON], round(outcome.seconds, 3))
    tried = replace(delivery, attempts=(*delivery.attempts, attempt))
    if outcome.taken:
        unit.tx.deliveries.update(replace(tried, state=DeliveryState.DELIVERED, finished_at=now))
        if webhook.failing_since is not None:
            unit.tx.webhooks.update(replace(webhook, failing_since=None))
        return
    pause = retry_after(len(tried.attempts), jitter)
    if pause is None:
        unit.tx.deliveries.update(replace(tried, state=DeliveryState.FAILED, finished_at=now))
    else:
        unit.tx.deliveries.update(replace(tried, next_at=now + pause))
    failing = webhook if webhook.failing_since is not None else replace(webhook, failing_since=now)
    if webhook.active and is_hopeless(failing, now):
        disable(unit, webhook, "all deliveries failed for a day")
    elif failing is not webhook:
        unit.tx.webhooks.update(failing)


def disable(unit: Unit, webhook: Webhook, reason: str) -> None:
    """Switch a webhook off by ourselves, and tell of it."""
    unit.tx.webhooks.update(replace(webhook, active=False, disabled_reason=reason))
    give_up(unit, webhook, reason)
    unit.emit(
        "webhook.disabled",
        webhook.id,
        organization_id=webhook.organization_id,
        project_id=webhook.project_id,
        severity="warning",
        data={"reason": reason},
    )


def give_up(unit: Unit, webhook: Webhook, reason: str) -> None:
    """Let all that waits for a webhook fail; it can be sent again by hand."""
    now = unit.now()
    for delivery in unit.tx.deliveries.select(eq("webhook_id", webhook.id), _WAITING):
        attempts = (*delivery.attempts, Attempt(now, None, reason, 0.0))
        unit.tx.deliveries.update(replace(delivery, state=DeliveryState.FAILED, attempts=attempts, finished_at=now))
