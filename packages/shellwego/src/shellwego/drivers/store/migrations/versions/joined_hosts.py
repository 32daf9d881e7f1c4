"""Servers say where they are, keys of the bus are known, why no other node reaches a node stands with it, and no two nodes
have one subnet.

Two new tables, and a column with a default: no row is written. The index reads all nodes once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "servers",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("urls", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "bus_keys",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("created_at", "expires_at", "revoked_at")),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("public_key", name="uq_bus_keys_public_key"),
    )
    for field in ("member_id", "expires_at", "revoked_at"):
        op.create_index(f"ix_bus_keys_{field}", "bus_keys", [field, "id"])
    op.add_column("nodes", sa.Column("unreached", sa.Text(), nullable=False, server_default=""))
    given = sa.text("subnet <> ''")
    op.create_index("uq_nodes_subnet", "nodes", ["subnet"], unique=True, sqlite_where=given, postgresql_where=given)


def downgrade() -> None:
    op.drop_index("uq_nodes_subnet", "nodes")
    with op.batch_alter_table("nodes") as nodes:
        nodes.drop_column("unreached")
    op.drop_table("bus_keys")
    op.drop_table("servers")
