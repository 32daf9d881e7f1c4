"""What happened, for people and machines: events through the outbox, and the audit record of who did what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Written in the transaction of the change. `seq` is given by the relay after commit; 0 until then."""

    id: str
    seq: int = 0
    time: float
    organization_id: str = ""
    project_id: str = ""
    type: str
    """`app.deployment.failed`, `instance.healthy`, `node.drained` …"""
    resource: str
    """Id of what it is about."""
    actor: str = "system"
    severity: str = "info"
    data: Mapping[str, str] = field(default_factory=dict)
    """At most 4 KB."""
    trace_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    id: str
    time: float
    actor: str
    action: str
    """The permission that was used, `apps:write`, or was denied."""
    resource: str
    allowed: bool
    detail: str = ""
    trace_id: str = ""
    organization_id: str = ""
    project_id: str = ""
    """Where the resource lies; both empty: in no organization."""
    position: str = ""
    """Its place in its chain (`core.audit`); given by the relay after the commit, empty until then."""
    previous: str = ""
    """Hash of the record before it in the chain."""
    hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    """The answer to a write that may be asked twice; kept 24 hours."""

    id: str
    """Principal and key, hashed together."""
    request_hash: str
    status: int
    body: str
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A number that only rises (`routes`, `events`)."""

    id: str
    value: int
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLease:
    """Which control plane runs a loop, by the database's clock."""

    id: str
    holder: str
    until: float
    version: int = 1
