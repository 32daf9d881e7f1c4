"""The schema of the SQL drivers: the declared tables (`tables`), with the unique keys and indexes that the port names.

Real columns for whatever is asked for, JSON text for nested values. One schema for SQLite and PostgreSQL, so only types that
mean the same in both (`columns`). An index carries the id as well, because rows are ordered by (field, id). There are no
foreign keys: an empty reference is an empty text here (an instance without a node), events outlive what they tell of, and
every driver, the memory one too, must refuse the same things. A change here needs a migration; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Column, Index, MetaData, Table, Text, UniqueConstraint, text

from shellwego.drivers.store.columns import AnyColumn, Declared
from shellwego.drivers.store.tables import apps, coordination, events, nodes, secrets, tenancy, volumes
from shellwego.ports.store import INDEXES, UNIQUE, UNIQUE_IF_GIVEN

metadata = MetaData()


def _unique_if_given(table: str, column: AnyColumn) -> Index:
    field = column.name
    given = text(f"{field} <> ''" if isinstance(column.type, Text) else f"{field} <> 0")
    return Index(f"uq_{table}_{field}", field, unique=True, sqlite_where=given, postgresql_where=given)


def _table(declared: Declared) -> Table:
    """A unique key that begins with a field serves as its index."""
    name, columns = declared.name, declared.columns
    keys = UNIQUE.get(name, ())
    led = {key[0] for key in keys}
    return Table(
        name,
        metadata,
        Column("id", Text, primary_key=True),
        *columns,
        *(UniqueConstraint(*key, name=f"uq_{name}_{'_'.join(key)}") for key in keys),
        *(Index(f"ix_{name}_{field}", field, "id") for field in INDEXES[name] if field not in led),
        *(_unique_if_given(name, column) for column in columns if column.name in UNIQUE_IF_GIVEN.get(name, ())),
    )


_DECLARED = (
    *tenancy.TABLES,
    *apps.TABLES,
    *nodes.TABLES,
    *volumes.TABLES,
    *secrets.TABLES,
    *events.TABLES,
    *coordination.TABLES,
)
TABLES: Mapping[str, Table] = {declared.name: _table(declared) for declared in _DECLARED}
