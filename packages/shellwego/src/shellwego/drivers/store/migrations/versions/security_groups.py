"""Security groups of projects, and which of them an app is in. A new table, and a column with a default: no row is
rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_INDEXES = ("name", "created_at")


def upgrade() -> None:
    op.add_column("apps", sa.Column("groups", sa.Text(), nullable=False, server_default="[]"))
    op.create_table(
        "security_groups",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rules", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("project_id", "name", name="uq_security_groups_project_id_name"),
    )
    for column in _INDEXES:
        op.create_index(f"ix_security_groups_{column}", "security_groups", [column, "id"])


def downgrade() -> None:
    op.drop_table("security_groups")
    with op.batch_alter_table("apps") as apps:
        apps.drop_column("groups")
