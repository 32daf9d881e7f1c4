"""Published ports of apps. A new table only: nothing is locked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_INDEXES = ("project_id", "app_id", "port", "created_at")


def upgrade() -> None:
    op.create_table(
        "published_ports",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("app_id", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("transport", sa.Text(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("target_port", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("transport", "port", name="uq_published_ports_transport_port"),
    )
    for column in _INDEXES:
        op.create_index(f"ix_published_ports_{column}", "published_ports", [column, "id"])


def downgrade() -> None:
    op.drop_table("published_ports")
