"""Replicas of volumes, and moves. A new table, and a column that is empty: no row is rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_INDEXES = ("project_id", "node_id", "purpose", "state", "created_at")


def upgrade() -> None:
    op.create_table(
        "replicas",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("volume_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("every_s", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=True),
        sa.Column("dropping", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("observed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("volume_id", "node_id", name="uq_replicas_volume_id_node_id"),
    )
    for column in _INDEXES:
        op.create_index(f"ix_replicas_{column}", "replicas", [column, "id"])
    op.add_column("volumes", sa.Column("move", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("volumes") as volumes:
        volumes.drop_column("move")
    for column in _INDEXES:
        op.drop_index(f"ix_replicas_{column}", "replicas")
    op.drop_table("replicas")
