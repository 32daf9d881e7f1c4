"""Of nodes that are reached by WireGuard it is known since when they have their keys.

A column with a default: no row is written, and nobody is kept from the table for longer than that takes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("tunnel_keys_since", sa.Text(), nullable=False, server_default="[]"))


def downgrade() -> None:
    with op.batch_alter_table("nodes") as nodes:
        nodes.drop_column("tunnel_keys_since")
