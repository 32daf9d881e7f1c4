"""Each project's network has a number, for the private addresses of its VMs.

A column with a default: no row is written. Projects of an older version have 0, which may be many's, and get their numbers
at the next start of a server (`control.networks.establish`), as do those that servers of that version still make meanwhile.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("network_number", sa.BigInteger(), nullable=False, server_default="0"))
    given = sa.text("network_number <> 0")
    op.create_index(
        "uq_projects_network_number",
        "projects",
        ["network_number"],
        unique=True,
        sqlite_where=given,
        postgresql_where=given,
    )


def downgrade() -> None:
    op.drop_index("uq_projects_network_number", "projects")
    with op.batch_alter_table("projects") as projects:
        projects.drop_column("network_number")
