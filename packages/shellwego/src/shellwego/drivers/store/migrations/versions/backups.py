"""Backups of volumes. New tables, and a column with a default: no row is rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_INDEXES = (
    ("backups", "volume_id"),
    ("backups", "project_id"),
    ("backups", "node_id"),
    ("backups", "state"),
    ("backups", "verifying"),
    ("backups", "created_at"),
    ("backup_policies", "project_id"),
    ("backup_policies", "next_at"),
    ("vaults", "garbage"),
)


def upgrade() -> None:
    op.create_table(
        "backups",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("volume_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("scheduled", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=False),
        sa.Column("freeze", sa.Boolean(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("done_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("verifying", sa.Boolean(), nullable=False),
        sa.Column("verifications", sa.Integer(), nullable=False),
        sa.Column("verified_at", sa.Double(), nullable=True),
        sa.Column("damage", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "backup_policies",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("every_s", sa.Integer(), nullable=False),
        sa.Column("daily", sa.Integer(), nullable=False),
        sa.Column("weekly", sa.Integer(), nullable=False),
        sa.Column("monthly", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "vaults",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("garbage", sa.Boolean(), nullable=False),
        sa.Column("sweeping_until", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    for table, column in _INDEXES:
        op.create_index(f"ix_{table}_{column}", table, [column, "id"])
    op.add_column("volumes", sa.Column("source_backup_id", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("volumes") as volumes:
        volumes.drop_column("source_backup_id")
    for table, column in _INDEXES:
        op.drop_index(f"ix_{table}_{column}", table)
    for table in ("vaults", "backup_policies", "backups"):
        op.drop_table(table)
