"""Nodes are emptied: how is kept with the node, what has to leave with the instance. And it is kept how steady nodes are.

Columns that are empty or have a default: no row is written. The indexes read all rows once; PostgreSQL keeps everybody from
the table of instances until its index is built: about 3 s for 10^6 of them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instances", sa.Column("eviction", sa.Text(), nullable=False, server_default="none"))
    op.create_index("ix_instances_eviction", "instances", ["eviction", "id"])
    op.add_column("nodes", sa.Column("drain", sa.Text(), nullable=True))
    op.add_column("nodes", sa.Column("ready_since", sa.Double(), nullable=True))
    op.add_column("nodes", sa.Column("downs", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("nodes", sa.Column("flapping_since", sa.Double(), nullable=True))
    op.create_index("ix_nodes_scheduling", "nodes", ["scheduling", "id"])


def downgrade() -> None:
    op.drop_index("ix_nodes_scheduling", "nodes")
    with op.batch_alter_table("nodes") as nodes:
        for name in ("drain", "ready_since", "downs", "flapping_since"):
            nodes.drop_column(name)
    op.drop_index("ix_instances_eviction", "instances")
    with op.batch_alter_table("instances") as instances:
        instances.drop_column("eviction")
