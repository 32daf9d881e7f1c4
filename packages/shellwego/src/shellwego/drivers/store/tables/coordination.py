"""What several servers agree by: leases and counters, and the answers to repeated requests."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column

from shellwego.drivers.store.columns import integer, moment, table, text, version

TABLES = (
    table("leases", text("holder"), moment("until"), version()),
    table("counters", Column("value", BigInteger, nullable=False), version()),
    table("idempotency", text("request_hash"), integer("status"), text("body"), moment("created_at")),
)
