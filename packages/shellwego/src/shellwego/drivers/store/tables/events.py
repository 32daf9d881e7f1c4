"""What happened, and who is told: events, the audit record and webhooks."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Text

from shellwego.drivers.store.columns import flag, moment, nested, table, text, version

TABLES = (
    table(
        "events",
        Column("seq", BigInteger, nullable=False),
        moment("time"),
        text("organization_id"),
        text("project_id"),
        text("type"),
        text("resource"),
        text("actor"),
        text("severity"),
        nested("data"),
        text("trace_id"),
    ),
    table(
        "audit",
        moment("time"),
        text("actor"),
        text("action"),
        text("resource"),
        flag("allowed"),
        text("detail"),
        text("trace_id"),
        *(
            Column(name, Text, nullable=False, server_default="")
            for name in ("organization_id", "project_id", "position", "previous", "hash")
        ),
    ),
    table(
        "webhooks",
        text("organization_id"),
        text("project_id"),
        text("url"),
        nested("events"),
        flag("active"),
        text("sealed_secret"),
        Column("since_seq", BigInteger, nullable=False),
        moment("failing_since", nullable=True),
        text("disabled_reason"),
        moment("created_at"),
        text("created_by"),
        version(),
    ),
    table(
        "deliveries",
        text("webhook_id"),
        text("event_id"),
        Column("seq", BigInteger, nullable=False),
        text("type"),
        text("body"),
        text("state"),
        nested("attempts"),
        moment("next_at"),
        moment("created_at"),
        moment("finished_at", nullable=True),
        version(),
    ),
)
