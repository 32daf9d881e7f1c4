"""Apps have an egress policy: what they may open connections to. A column with a default: no row is rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("apps", sa.Column("egress", sa.Text(), nullable=False, server_default="{}"))


def downgrade() -> None:
    with op.batch_alter_table("apps") as apps:
        apps.drop_column("egress")
