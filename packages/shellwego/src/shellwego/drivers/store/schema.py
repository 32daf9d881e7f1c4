"""The tables of the SQL drivers, column by column: real columns for whatever is asked for, JSON text for nested values.

One schema for SQLite and PostgreSQL, so only types that mean the same in both. Unique keys and indexes follow
`ports.store`; an index carries the id as well, because rows are ordered by (field, id). There are no foreign keys: an
empty reference is an empty text here (an instance without a node), events outlive what they tell of, and every driver,
the memory one too, must refuse the same things. A change here needs a migration; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from shellwego.ports.store import INDEXES, UNIQUE, UNIQUE_IF_GIVEN

metadata = MetaData()


def _id() -> Column[str]:
    return Column("id", Text, primary_key=True)


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def _integer(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Integer, nullable=nullable)


def _bytes(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _time(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


def _json(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def _version() -> Column[int]:
    return Column("version", BigInteger, nullable=False)


def _unique_if_given(table: str, field: str) -> Index:
    given = text(f"{field} <> ''")
    return Index(f"uq_{table}_{field}", field, unique=True, sqlite_where=given, postgresql_where=given)


def _table(name: str, *columns: Column[str] | Column[int] | Column[float] | Column[bool]) -> Table:
    """A table with the unique keys and indexes that the port names; a unique key that begins with a field serves it."""
    keys = UNIQUE.get(name, ())
    led = {key[0] for key in keys}
    return Table(
        name,
        metadata,
        _id(),
        *columns,
        *(UniqueConstraint(*key, name=f"uq_{name}_{'_'.join(key)}") for key in keys),
        *(Index(f"ix_{name}_{field}", field, "id") for field in INDEXES[name] if field not in led),
        *(_unique_if_given(name, field) for field in UNIQUE_IF_GIVEN.get(name, ())),
    )


TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        _table("organizations", _text("name"), _text("plan"), _time("created_at"), _version()),
        _table(
            "projects",
            _text("organization_id"),
            _text("name"),
            _text("network_id"),
            _flag("first"),
            _time("created_at"),
            _version(),
        ),
        _table(
            "users",
            _text("email"),
            Column("name", Text, nullable=False, server_default=""),
            _time("created_at"),
            _time("disabled_at", nullable=True),
            _version(),
        ),
        _table(
            "credentials",
            _text("password_hash"),
            _time("password_at", nullable=True),
            _json("totp_sealed", nullable=True),
            _flag("totp_on"),
            Column("totp_step", BigInteger, nullable=False),
            _json("recovery_hashes"),
            _json("known_sources"),
            _version(),
        ),
        _table(
            "invitations",
            _text("organization_id"),
            _text("email"),
            _text("role"),
            _text("secret_hash"),
            _text("invited_by"),
            _time("created_at"),
            _time("expires_at"),
            _time("accepted_at", nullable=True),
            _text("accepted_by"),
            _time("revoked_at", nullable=True),
            _version(),
        ),
        _table(
            "tokens",
            _text("kind"),
            _text("principal_id"),
            _text("name"),
            _text("secret_hash"),
            _json("scopes"),
            _time("created_at"),
            _time("expires_at", nullable=True),
            _time("revoked_at", nullable=True),
            Column("parent_id", Text, nullable=False, server_default=""),
            Column("resources", Text, nullable=False, server_default="[]"),
            Column("issued_by", Text, nullable=False, server_default="token"),
            _version(),
        ),
        _table("token_uses", _time("used_at"), _version()),
        _table("grants", _text("principal_id"), _text("role"), _text("scope_id"), _time("created_at"), _version()),
        _table(
            "service_accounts",
            _text("organization_id"),
            _text("name"),
            _text("description"),
            _time("created_at"),
            _version(),
        ),
        _table("roles", _text("organization_id"), _text("name"), _json("permissions"), _time("created_at"), _version()),
        _table("quotas", _json("limits"), _time("created_at"), _version()),
        _table(
            "apps",
            _text("project_id"),
            _text("name"),
            _text("hostname"),
            _json("config"),
            _json("counts"),
            _flag("stopped"),
            _integer("generation"),
            _text("release_id"),
            _text("stable_release_id"),
            _integer("stable_generation"),
            _integer("last_release_number"),
            _time("created_at"),
            _time("updated_at"),
            _flag("deleting"),
            _version(),
        ),
        _table(
            "releases",
            _text("app_id"),
            _integer("number"),
            _json("config"),
            _text("image_digest"),
            _text("content_hash"),
            _time("created_at"),
            _text("created_by"),
            _text("description"),
            _version(),
        ),
        _table(
            "deployments",
            _text("app_id"),
            _text("release_id"),
            _text("state"),
            _text("stage"),
            _text("strategy"),
            _flag("rollback_on_failure"),
            _time("wait_timeout_s"),
            _json("max_unavailable", nullable=True),
            _json("surge", nullable=True),
            _json("canary", nullable=True),
            Column("step", Text, nullable=False, server_default="{}"),
            _json("release_command", nullable=True),
            _text("reason"),
            _text("reason_code"),
            _json("log_tail"),
            _time("created_at"),
            _text("created_by"),
            _time("started_at", nullable=True),
            _time("finished_at", nullable=True),
            _integer("cut_connections"),
            Column("stages", Text, nullable=False, server_default="[]"),
            _version(),
        ),
        _table(
            "instances",
            _text("app_id"),
            _text("owner"),
            _text("process"),
            _integer("slot"),
            _text("release_id"),
            _text("content_hash"),
            _integer("generation"),
            _json("command", nullable=True),
            Column("deployment_id", Text, nullable=False, server_default=""),
            _bytes("memory_bytes"),
            _integer("cpu_milli"),
            _bytes("disk_bytes"),
            _text("node_id"),
            _text("desired"),
            Column("sleep", Text, nullable=False, server_default="awake"),
            Column("eviction", Text, nullable=False, server_default="none"),
            Column("memory_of", Text, nullable=False, server_default=""),
            Column("priority", Integer, nullable=False, server_default="50"),
            Column("reserved_node_id", Text, nullable=False, server_default=""),
            Column("makes_room_for", Text, nullable=False, server_default=""),
            _text("phase"),
            _json("observed"),
            _text("placement_reason"),
            Column("routed_version", BigInteger, nullable=True),
            Column("unrouted_version", BigInteger, nullable=True),
            _time("drain_since", nullable=True),
            _time("created_at"),
            _time("phase_since"),
            _time("stopped_at", nullable=True),
            _version(),
        ),
        _table(
            "nodes",
            _text("name"),
            _text("region"),
            _text("zone"),
            _json("labels"),
            _text("subnet"),
            _json("facts"),
            _text("health"),
            _text("scheduling"),
            _json("drain", nullable=True),
            _integer("epoch"),
            _time("last_heard_at"),
            _time("ready_since", nullable=True),
            Column("downs", Text, nullable=False, server_default="[]"),
            _time("flapping_since", nullable=True),
            Column("unreached", Text, nullable=False, server_default=""),
            _time("created_at"),
            _version(),
        ),
        _table("servers", _json("urls"), _time("seen_at"), _version()),
        _table(
            "bus_keys",
            _text("public_key"),
            _text("member_id"),
            _time("created_at"),
            _time("expires_at"),
            _time("revoked_at"),
            _version(),
        ),
        _table(
            "join_tokens",
            _text("kind"),
            _text("name"),
            _text("region"),
            _text("zone"),
            _json("labels"),
            _text("secret_hash"),
            _text("created_by"),
            _time("created_at"),
            _time("expires_at"),
            _time("used_at", nullable=True),
            _text("used_by"),
            _text("used_key"),
            _time("revoked_at", nullable=True),
            _version(),
        ),
        _table(
            "node_keys",
            _text("fingerprint"),
            _text("member_id"),
            _text("kind"),
            _text("token_id"),
            _text("authority_id"),
            _time("created_at"),
            _time("expires_at"),
            _time("retired_at", nullable=True),
            _version(),
        ),
        _table(
            "node_authorities",
            _text("certificate"),
            _text("fingerprint"),
            _json("sealed"),
            _time("created_at"),
            _time("expires_at"),
            _time("retired_at", nullable=True),
            _version(),
        ),
        _table(
            "images",
            _text("project_id"),
            _text("reference"),
            _text("digest"),
            _text("state"),
            _bytes("size_bytes"),
            _json("exposed_ports"),
            _flag("loaded"),
            _text("reason"),
            _time("created_at"),
            _version(),
        ),
        _table(
            "edges",
            _text("name"),
            Column("applied_version", BigInteger, nullable=False),
            _json("open_sessions"),
            _time("lease_until"),
            _time("created_at"),
            _version(),
        ),
        _table(
            "events",
            Column("seq", BigInteger, nullable=False),
            _time("time"),
            _text("organization_id"),
            _text("project_id"),
            _text("type"),
            _text("resource"),
            _text("actor"),
            _text("severity"),
            _json("data"),
            _text("trace_id"),
        ),
        _table(
            "audit",
            _time("time"),
            _text("actor"),
            _text("action"),
            _text("resource"),
            _flag("allowed"),
            _text("detail"),
            _text("trace_id"),
            *(
                Column(name, Text, nullable=False, server_default="")
                for name in ("organization_id", "project_id", "position", "previous", "hash")
            ),
        ),
        _table(
            "webhooks",
            _text("organization_id"),
            _text("project_id"),
            _text("url"),
            _json("events"),
            _flag("active"),
            _text("sealed_secret"),
            Column("since_seq", BigInteger, nullable=False),
            _time("failing_since", nullable=True),
            _text("disabled_reason"),
            _time("created_at"),
            _text("created_by"),
            _version(),
        ),
        _table(
            "deliveries",
            _text("webhook_id"),
            _text("event_id"),
            Column("seq", BigInteger, nullable=False),
            _text("type"),
            _text("body"),
            _text("state"),
            _json("attempts"),
            _time("next_at"),
            _time("created_at"),
            _time("finished_at", nullable=True),
            _version(),
        ),
        _table("idempotency", _text("request_hash"), _integer("status"), _text("body"), _time("created_at")),
        _table("counters", Column("value", BigInteger, nullable=False), _version()),
        _table("leases", _text("holder"), _time("until"), _version()),
        _table(
            "secrets",
            _text("project_id"),
            _text("name"),
            _text("description"),
            _json("metadata"),
            _text("data_key_id"),
            _integer("latest"),
            _time("created_at"),
            _time("updated_at"),
            _text("created_by"),
            _version(),
        ),
        _table(
            "secret_versions",
            _text("secret_id"),
            _integer("number"),
            _json("sealed", nullable=True),
            _integer("size_bytes"),
            _time("created_at"),
            _text("created_by"),
            _time("expires_at", nullable=True),
            _time("retired_at", nullable=True),
            _time("last_used_at", nullable=True),
            _version(),
        ),
        _table(
            "data_keys",
            _text("purpose"),
            _text("subject"),
            _text("organization_id"),
            _text("project_id"),
            _text("master_key"),
            _json("wrapped"),
            _time("created_at"),
            _time("wrapped_at"),
            _version(),
        ),
        _table("master_keys", _time("created_at"), _time("retired_at", nullable=True), _version()),
        _table(
            "volumes",
            _text("project_id"),
            _text("name"),
            _bytes("size_bytes"),
            _text("node_id"),
            _flag("made"),
            _text("source_snapshot_id"),
            _text("instance_id"),
            _text("snapshot_id"),
            _text("restore_snapshot_id"),
            _integer("restores"),
            _flag("protected"),
            _flag("deleting"),
            _text("state"),
            _json("observed"),
            _time("created_at"),
            _text("created_by"),
            _version(),
        ),
        _table(
            "snapshots",
            _text("volume_id"),
            _text("project_id"),
            _text("description"),
            _bytes("size_bytes"),
            _bytes("used_bytes"),
            _flag("frozen"),
            _text("state"),
            _text("reason"),
            _time("created_at"),
            _text("created_by"),
            _version(),
        ),
    )
}
