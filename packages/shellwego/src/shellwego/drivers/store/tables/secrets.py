"""What nobody reads again: secrets, and the keys that seal them."""

from __future__ import annotations

from shellwego.drivers.store.columns import integer, moment, nested, table, text, version

TABLES = (
    table(
        "secrets",
        text("project_id"),
        text("name"),
        text("description"),
        nested("metadata"),
        text("data_key_id"),
        integer("latest"),
        moment("created_at"),
        moment("updated_at"),
        text("created_by"),
        version(),
    ),
    table(
        "secret_versions",
        text("secret_id"),
        integer("number"),
        nested("sealed", nullable=True),
        integer("size_bytes"),
        moment("created_at"),
        text("created_by"),
        moment("expires_at", nullable=True),
        moment("retired_at", nullable=True),
        moment("last_used_at", nullable=True),
        version(),
    ),
    table(
        "data_keys",
        text("purpose"),
        text("subject"),
        text("organization_id"),
        text("project_id"),
        text("master_key"),
        nested("wrapped"),
        moment("created_at"),
        moment("wrapped_at"),
        version(),
    ),
    table("master_keys", moment("created_at"), moment("retired_at", nullable=True), version()),
)
