"""Service accounts, custom roles and quotas; grants are asked for by scope and role. The tables are new; each index reads
all grants once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("organization_id", "name", name="uq_service_accounts_organization_id_name"),
    )
    op.create_index("ix_service_accounts_name", "service_accounts", ["name", "id"])
    op.create_table(
        "roles",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("permissions", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("organization_id", "name", name="uq_roles_organization_id_name"),
    )
    op.create_index("ix_roles_name", "roles", ["name", "id"])
    op.create_table(
        "quotas",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_grants_scope_id", "grants", ["scope_id", "id"])
    op.create_index("ix_grants_role", "grants", ["role", "id"])


def downgrade() -> None:
    op.drop_index("ix_grants_role", "grants")
    op.drop_index("ix_grants_scope_id", "grants")
    op.drop_table("quotas")
    op.drop_table("roles")
    op.drop_table("service_accounts")
