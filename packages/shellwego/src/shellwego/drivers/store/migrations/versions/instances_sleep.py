"""Instances may be wanted asleep. A column with a default: SQLite writes no row for it; the index reads all once.

PostgreSQL keeps everybody from the table until the index is built: about 3 s for 10^6 instances.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instances", sa.Column("sleep", sa.Text(), nullable=False, server_default="awake"))
    op.create_index("ix_instances_sleep", "instances", ["sleep", "id"])


def downgrade() -> None:
    op.drop_index("ix_instances_sleep", "instances")
    with op.batch_alter_table("instances") as instances:
        instances.drop_column("sleep")
