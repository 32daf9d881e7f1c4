"""Volumes may be encrypted, and have a key then. Columns that are empty or have a default: no row is rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("volumes", sa.Column("encrypted", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("volumes", sa.Column("sealed_key", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("volumes") as volumes:
        volumes.drop_column("sealed_key")
        volumes.drop_column("encrypted")
