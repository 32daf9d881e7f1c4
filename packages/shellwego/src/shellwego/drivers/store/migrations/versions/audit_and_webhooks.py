"""Audit records get their scope and their place in a chain. Columns with a default: no row is rewritten; an index reads all
rows once. What was written before, or by the version before, has no place yet and is chained by the relay."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_AUDIT = ("organization_id", "project_id", "position", "previous", "hash")
_ASKED = ("organization_id", "project_id", "position")


def upgrade() -> None:
    for name in _AUDIT:
        op.add_column("audit", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    for name in _ASKED:
        op.create_index(f"ix_audit_{name}", "audit", [name, "id"])


def downgrade() -> None:
    for name in _ASKED:
        op.drop_index(f"ix_audit_{name}", "audit")
    with op.batch_alter_table("audit") as audit:
        for name in _AUDIT:
            audit.drop_column(name)
