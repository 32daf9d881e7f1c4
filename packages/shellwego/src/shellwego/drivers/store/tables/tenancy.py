"""Who may do what: organizations, projects, people, their tokens and grants."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Text

from shellwego.drivers.store.columns import flag, moment, nested, table, text, version

TABLES = (
    table("organizations", text("name"), text("plan"), moment("created_at"), version()),
    table(
        "projects",
        text("organization_id"),
        text("name"),
        text("network_id"),
        Column("network_number", BigInteger, nullable=False, server_default="0"),
        flag("first"),
        moment("created_at"),
        version(),
    ),
    table(
        "users",
        text("email"),
        Column("name", Text, nullable=False, server_default=""),
        moment("created_at"),
        moment("disabled_at", nullable=True),
        version(),
    ),
    table(
        "credentials",
        text("password_hash"),
        moment("password_at", nullable=True),
        nested("totp_sealed", nullable=True),
        flag("totp_on"),
        Column("totp_step", BigInteger, nullable=False),
        nested("recovery_hashes"),
        nested("known_sources"),
        version(),
    ),
    table(
        "invitations",
        text("organization_id"),
        text("email"),
        text("role"),
        text("secret_hash"),
        text("invited_by"),
        moment("created_at"),
        moment("expires_at"),
        moment("accepted_at", nullable=True),
        text("accepted_by"),
        moment("revoked_at", nullable=True),
        version(),
    ),
    table(
        "tokens",
        text("kind"),
        text("principal_id"),
        text("name"),
        text("secret_hash"),
        nested("scopes"),
        moment("created_at"),
        moment("expires_at", nullable=True),
        moment("revoked_at", nullable=True),
        Column("parent_id", Text, nullable=False, server_default=""),
        Column("resources", Text, nullable=False, server_default="[]"),
        Column("issued_by", Text, nullable=False, server_default="token"),
        version(),
    ),
    table("token_uses", moment("used_at"), version()),
    table("grants", text("principal_id"), text("role"), text("scope_id"), moment("created_at"), version()),
    table(
        "service_accounts",
        text("organization_id"),
        text("name"),
        text("description"),
        moment("created_at"),
        version(),
    ),
    table("roles", text("organization_id"), text("name"), nested("permissions"), moment("created_at"), version()),
    table("quotas", nested("limits"), moment("created_at"), version()),
)
