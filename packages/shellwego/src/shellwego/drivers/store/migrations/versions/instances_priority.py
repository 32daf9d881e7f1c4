"""Instances have a priority, by which some make room for others; a place may be kept for one until it is free.

Columns with defaults: no row is written. The indexes read all rows once; PostgreSQL keeps everybody from the table until
they are built: about 3 s each for 10^6 instances.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instances", sa.Column("priority", sa.Integer(), nullable=False, server_default="50"))
    op.add_column("instances", sa.Column("reserved_node_id", sa.Text(), nullable=False, server_default=""))
    op.add_column("instances", sa.Column("makes_room_for", sa.Text(), nullable=False, server_default=""))
    op.create_index("ix_instances_reserved_node_id", "instances", ["reserved_node_id", "id"])
    op.create_index("ix_instances_priority", "instances", ["priority", "id"])


def downgrade() -> None:
    op.drop_index("ix_instances_priority", "instances")
    op.drop_index("ix_instances_reserved_node_id", "instances")
    with op.batch_alter_table("instances") as instances:
        for name in ("priority", "reserved_node_id", "makes_room_for"):
            instances.drop_column(name)
