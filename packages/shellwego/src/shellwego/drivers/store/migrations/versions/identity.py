"""Who somebody is: users have a name and can be disabled, their credentials lie apart; tokens know their parent, what they
are narrowed to and who made them; when they were used last lies apart. Invitations are new. Columns with defaults: SQLite
writes no row for them; the index reads all tokens once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tokens", sa.Column("parent_id", sa.Text(), nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("resources", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("tokens", sa.Column("issued_by", sa.Text(), nullable=False, server_default="token"))
    op.create_index("ix_tokens_parent_id", "tokens", ["parent_id", "id"])
    op.add_column("users", sa.Column("name", sa.Text(), nullable=False, server_default=""))
    op.add_column("users", sa.Column("disabled_at", sa.Double(), nullable=True))
    op.create_table(
        "credentials",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("password_at", sa.Double(), nullable=True),
        sa.Column("totp_sealed", sa.Text(), nullable=True),
        sa.Column("totp_on", sa.Boolean(), nullable=False),
        sa.Column("totp_step", sa.BigInteger(), nullable=False),
        sa.Column("recovery_hashes", sa.Text(), nullable=False),
        sa.Column("known_sources", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("invited_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("accepted_at", sa.Double(), nullable=True),
        sa.Column("accepted_by", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("secret_hash", name="uq_invitations_secret_hash"),
    )
    op.create_index("ix_invitations_organization_id", "invitations", ["organization_id", "id"])
    op.create_index("ix_invitations_created_at", "invitations", ["created_at", "id"])
    op.create_table(
        "token_uses",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("token_uses")
    op.drop_table("credentials")
    op.drop_table("invitations")
    with op.batch_alter_table("users") as users:
        for name in ("name", "disabled_at"):
            users.drop_column(name)
    op.drop_index("ix_tokens_parent_id", "tokens")
    with op.batch_alter_table("tokens") as tokens:
        for name in ("parent_id", "resources", "issued_by"):
            tokens.drop_column(name)
