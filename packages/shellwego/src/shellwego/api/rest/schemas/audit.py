"""Audit records and the proof of their chain."""

from __future__ import annotations

from datetime import datetime

from shellwego.api.rest.schemas.common import Pagination, View, when
from shellwego.control.audit import Verification
from shellwego.core.events import AuditRecord


class AuditView(View):
    """Who did what, or was refused it. `position` is its place in its organization's chain, absent for the moment until it
    is chained; `hash` is the SHA-256 of the JSON array, ASCII and without spaces, of position, previous, id, time (seconds
    since the epoch, with a fraction), organization, project, actor, action, resource, allowed, detail and trace_id, an
    absent one as an empty text."""

    id: str
    time: datetime
    timestamp: float
    """The time as it went into the hash."""
    organization_id: str | None
    project_id: str | None
    actor: str
    action: str
    resource: str
    allowed: bool
    detail: str
    trace_id: str
    position: str | None
    previous: str | None
    hash: str | None


class AuditList(View):
    data: list[AuditView]
    pagination: Pagination


class AuditHead(View):
    """The newest record of a chain. Written down elsewhere as `position:hash`, it is an anchor for a later check."""

    position: str
    hash: str


class AuditBreak(View):
    """The first place where a chain does not hold: `changed`, `removed`, `inserted` or `reordered`. `id` is of the record
    there, if there is one."""

    position: str
    fault: str
    message: str
    id: str | None


class AuditVerification(View):
    """Whether the chain holds, over `checked` records. Those `pending` are not chained yet. At most a hundred heads."""

    sound: bool
    checked: int
    pending: int
    heads: list[AuditHead]
    broken: AuditBreak | None


class AuditExportEnd(View):
    """The last line of an export. Without it the export is not complete."""

    complete: bool
    records: int


def audit_view(record: AuditRecord) -> AuditView:
    return AuditView(
        id=record.id,
        time=when(record.time),
        timestamp=record.time,
        organization_id=record.organization_id or None,
        project_id=record.project_id or None,
        actor=record.actor,
        action=record.action,
        resource=record.resource,
        allowed=record.allowed,
        detail=record.detail,
        trace_id=record.trace_id,
        position=record.position or None,
        previous=record.previous or None,
        hash=record.hash or None,
    )


def verification_view(found: Verification) -> AuditVerification:
    broken = found.broken
    return AuditVerification(
        sound=broken is None,
        checked=found.checked,
        pending=found.pending,
        heads=[AuditHead(position=head.position, hash=head.hash) for head in found.heads],
        broken=None
        if broken is None
        else AuditBreak(
            position=broken.position, fault=broken.fault.value, message=broken.message, id=broken.record_id or None
        ),
    )
