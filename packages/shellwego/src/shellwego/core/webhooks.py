"""Webhooks: who is told of which events, and what becomes of each telling.

Theory. An event makes one delivery for each webhook that wants it. A delivery waits until it is due, is tried, and is
delivered (any answer of the kind 2xx), waits again for longer, or has failed when its retries are spent. A webhook that
had nothing but failures for a day is switched off, and so is one whose receiver falls too far behind.

Promise: each event at least once, as long as the webhook is on and its retries last. First attempts of one webhook go out
one after another in the order of `seq`; one that must be tried again does not hold the later ones up, so it comes after
them. The receiver orders by `seq` and knows an event again by its id.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import StrEnum

from shellwego.core.envelope import SealedValue
from shellwego.core.events import Event

MAX_PATTERNS = 32
MAX_RETRIES = 5
FIRST_RETRY_S = 10.0
GROWTH = 6.0
SPREAD = 0.5
DISABLE_AFTER_S = 24 * 3600.0
MAX_WAITING = 1000
"""Deliveries of one webhook that wait; with one more it is switched off."""
KEPT = 2000
"""Deliveries of one webhook that are kept in all."""
KEPT_S = 7 * 24 * 3600.0
MAX_WEBHOOKS = 20
"""In one scope."""
TEST = "webhook.test"
_PATTERN = re.compile(r"\*|[a-z][a-z0-9_-]*(?:\.[a-z][a-z0-9_-]*)*(?:\.\*)?", re.ASCII)


class DeliveryState(StrEnum):
    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


FINISHED = (DeliveryState.DELIVERED, DeliveryState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    id: str
    organization_id: str
    project_id: str = ""
    """Empty: the events of all projects of the organization, and of itself."""
    url: str
    events: tuple[str, ...] = ()
    """Types, or `app.deployment.*`; none: all."""
    active: bool = True
    sealed_secret: SealedValue
    since_seq: int = 0
    """Events up to this number were before it was switched on."""
    failing_since: float | None = None
    """Of the first failure after the last success."""
    disabled_reason: str = ""
    """Why the platform switched it off."""
    created_at: float
    created_by: str = ""
    version: int = 1


@dataclass(frozen=True, slots=True)
class Attempt:
    at: float
    status: int | None
    """HTTP status; None: there was no answer."""
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    id: str
    webhook_id: str
    event_id: str
    seq: int
    """Of the event; 0 for a test."""
    type: str
    body: str
    """What is sent: the event as JSON."""
    state: DeliveryState = DeliveryState.WAITING
    attempts: tuple[Attempt, ...] = ()
    next_at: float
    """When it is due."""
    created_at: float
    finished_at: float | None = None
    version: int = 1


def is_pattern(text: str) -> bool:
    """Whether it can name types of events."""
    return len(text) <= 100 and _PATTERN.fullmatch(text) is not None


def wants(webhook: Webhook, event: Event) -> bool:
    """Whether the webhook is to be told of this event; not of what becomes of itself."""
    within = webhook.organization_id == event.organization_id and webhook.project_id in ("", event.project_id)
    other = event.seq > webhook.since_seq and event.resource != webhook.id
    chosen = not webhook.events or any(matches(pattern, event.type) for pattern in webhook.events)
    return webhook.active and within and other and chosen


def matches(pattern: str, type_: str) -> bool:
    """`*` is every type, `app.*` whatever is below `app`."""
    if pattern.endswith("*"):
        return type_.startswith(pattern[:-1])
    return pattern == type_


def retry_after(attempts: int, jitter: float) -> float | None:
    """Seconds until the next attempt after so many; None: there is none. `jitter` is a random number from 0 up to 1.

    The pause is at least the plain exponential one, and at most half as much more, so that receivers which were down
    are not met by everybody at the same moment.
    """
    if attempts > MAX_RETRIES:
        return None
    return FIRST_RETRY_S * GROWTH ** (attempts - 1) * (1 + SPREAD * jitter)


def is_hopeless(webhook: Webhook, now: float) -> bool:
    """Whether it had nothing but failures for too long."""
    return webhook.failing_since is not None and now - webhook.failing_since >= DISABLE_AFTER_S


def signature(secret: str, timestamp: int, body: str) -> str:
    """Value of `X-ShellWeGo-Signature`: HMAC-SHA-256 (RFC 2104) over `timestamp.body`."""
    return "sha256=" + hmac.new(secret.encode(), f"{timestamp}.{body}".encode(), hashlib.sha256).hexdigest()
