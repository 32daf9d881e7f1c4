"""The volume's snapshots that come along with a standby replica. A column that is empty: no row is rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("replicas", sa.Column("along", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("replicas") as replicas:
        replicas.drop_column("along")
