"""Deployments have their own numbers, canary steps, a release command, and a record of their stages.

Only columns that are empty or have a default: no row is written, and no lock is held for longer than the catalogue needs.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_NEW = (
    ("deployments", "max_unavailable", None),
    ("deployments", "surge", None),
    ("deployments", "canary", None),
    ("deployments", "step", "{}"),
    ("deployments", "release_command", None),
    ("deployments", "stages", "[]"),
    ("instances", "deployment_id", ""),
)
"""Table, column, default; None: it may be empty."""


def upgrade() -> None:
    for table, name, default in _NEW:
        op.add_column(table, sa.Column(name, sa.Text(), nullable=default is None, server_default=default))


def downgrade() -> None:
    for table in ("deployments", "instances"):
        with op.batch_alter_table(table) as rows:
            for name in [name for where, name, _ in _NEW if where == table]:
                rows.drop_column(name)
