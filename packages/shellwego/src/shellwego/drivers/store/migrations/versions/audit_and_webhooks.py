"""Audit records get their scope and their place in a chain. Columns with a default: no row is rewritten; an index reads all
rows once. What was written before, or by the version before, has no place yet and is chained by the relay.
Webhooks and their deliveries are new tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_AUDIT = ("organization_id", "project_id", "position", "previous", "hash")
_ASKED = ("organization_id", "project_id", "position")
_NEW_INDEXES = {
    "webhooks": ("organization_id", "project_id", "created_at"),
    "deliveries": ("webhook_id", "state", "type", "next_at", "seq", "created_at"),
}


def upgrade() -> None:
    for name in _AUDIT:
        op.add_column("audit", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    for name in _ASKED:
        op.create_index(f"ix_audit_{name}", "audit", [name, "id"])
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("sealed_secret", sa.Text(), nullable=False),
        sa.Column("since_seq", sa.BigInteger(), nullable=False),
        sa.Column("failing_since", sa.Double(), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Text(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    for table, names in _NEW_INDEXES.items():
        for name in names:
            op.create_index(f"ix_{table}_{name}", table, [name, "id"])


def downgrade() -> None:
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    for name in _ASKED:
        op.drop_index(f"ix_audit_{name}", "audit")
    with op.batch_alter_table("audit") as audit:
        for name in _AUDIT:
            audit.drop_column(name)
