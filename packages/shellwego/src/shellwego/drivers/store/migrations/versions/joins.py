"""Hosts join by tokens, and are known by keys that the platform's own authority signed. Only new tables: nothing waits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.Text(), primary_key=True),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("kind", "name", "region", "zone", "labels")),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.Column("used_by", sa.Text(), nullable=False),
        sa.Column("used_key", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("secret_hash", name="uq_join_tokens_secret_hash"),
    )
    op.create_index("ix_join_tokens_created_at", "join_tokens", ["created_at", "id"])
    op.create_table(
        "node_keys",
        sa.Column("id", sa.Text(), primary_key=True),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("fingerprint", "member_id", "kind")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("token_id", "authority_id")),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("retired_at", sa.Double(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("fingerprint", name="uq_node_keys_fingerprint"),
    )
    for field in ("member_id", "authority_id", "expires_at", "created_at"):
        op.create_index(f"ix_node_keys_{field}", "node_keys", [field, "id"])
    op.create_table(
        "node_authorities",
        sa.Column("id", sa.Text(), primary_key=True),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("certificate", "fingerprint", "sealed")),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("retired_at", sa.Double(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_node_authorities_created_at", "node_authorities", ["created_at", "id"])


def downgrade() -> None:
    op.drop_table("node_authorities")
    op.drop_table("node_keys")
    op.drop_table("join_tokens")
