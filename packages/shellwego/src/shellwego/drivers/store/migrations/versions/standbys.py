"""Standby replicas of volumes, and their promotion. Columns that are empty or have a default: no row is rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("leases_over_epoch", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("volumes", sa.Column("epoch", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("volumes", sa.Column("promotion", sa.Text(), nullable=True))
    op.add_column("replicas", sa.Column("wished_node_id", sa.Text(), nullable=False, server_default=""))
    op.add_column("replicas", sa.Column("automatic", sa.Boolean(), nullable=False, server_default=sa.true()))


def downgrade() -> None:
    with op.batch_alter_table("replicas") as replicas:
        replicas.drop_column("automatic")
        replicas.drop_column("wished_node_id")
    with op.batch_alter_table("volumes") as volumes:
        volumes.drop_column("promotion")
        volumes.drop_column("epoch")
    with op.batch_alter_table("nodes") as nodes:
        nodes.drop_column("leases_over_epoch")
