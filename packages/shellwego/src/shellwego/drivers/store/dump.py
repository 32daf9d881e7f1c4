"""All rows of a database as they were at one moment, and a new database made of them: of SQLite or PostgreSQL, either way.

A row is a line of JSON by column. Columns hold text, numbers and truth only (`schema`), and JSON tells each of them exactly.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from shellwego.core.errors import ConflictError, NotFoundError, UnavailableError
from shellwego.drivers.store import migrate
from shellwego.drivers.store.location import Location, PostgresUrl
from shellwego.drivers.store.schema import metadata

Lines = Iterator[bytes]
_BATCH = 500
_MARKED = "alembic_version"
"""The table whose comment is the mark: it is there in every schema, and no row of it is ours."""


@contextmanager
def snapshot(location: Location) -> Iterator[Mapping[str, Callable[[], Lines]]]:
    """By table: what gives its rows, all of one moment, whatever is written meanwhile.

    Raises:
        NotFoundError: there is no such database.
        ConflictError: it is not of this version's schema.
    """
    if isinstance(location, Path) and not location.exists():
        raise NotFoundError("no-database", f"there is no database {location}", resolution="Give its --data-dir.")
    with migrate.connected(location) as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            found = migrate.revision_of(connection)
            if found != migrate.HEAD:
                raise ConflictError(
                    "schema-differs",
                    f"the database {location} has schema {found or 'none'}, and this version {migrate.HEAD}",
                    resolution="Back up with the version that runs on it.",
                )
            yield {name: _reader(connection, table) for name, table in metadata.tables.items()}


def _reader(connection: sa.Connection, table: sa.Table) -> Callable[[], Lines]:
    def read() -> Lines:
        streaming = connection.execution_options(stream_results=True, yield_per=_BATCH)
        for row in streaming.execute(sa.select(table).order_by(*table.primary_key)).mappings():
            yield json.dumps(dict(row), ensure_ascii=False).encode() + b"\n"

    return read


def check_empty(location: Location) -> None:
    """Refuse a database that holds anything.

    Raises:
        ConflictError: it has tables.
    """
    if isinstance(location, Path) and not location.exists():
        return
    with migrate.connected(location) as connection:
        if sa.inspect(connection).get_table_names():
            raise _not_empty(location)


def load(
    location: Location, revision: str, tables: Mapping[str, Callable[[], Iterable[bytes]]], mark: str = ""
) -> None:
    """Make a database of this schema, with these rows, where there is none: all of it, or nothing. A mark, of PostgreSQL
    alone, comes with them in the same transaction, and says by whom this was done (`marked`).

    Raises:
        ConflictError: it is not empty, or others filled it meanwhile; or the schema is newer than this version.
    """
    check_empty(location)

    def insert(connection: sa.Connection) -> None:
        found = sa.MetaData()
        found.reflect(connection)
        for name, lines in tables.items():
            batches = iter(lines())
            while rows := [json.loads(line) for line in itertools.islice(batches, _BATCH)]:
                connection.execute(sa.insert(found.tables[name]), rows)
        if mark:
            connection.execute(sa.schema.SetTableComment(sa.Table(_MARKED, sa.MetaData(), comment=mark)))

    migrate.make(location, revision, insert)
    if mark and isinstance(location, PostgresUrl) and marked(location) != mark:
        raise _not_empty(location)


def marked(location: PostgresUrl) -> str:
    """The mark that this database was filled with; empty: none."""
    with migrate.connected(location) as connection:
        look = sa.inspect(connection)
        return (look.get_table_comment(_MARKED)["text"] or "") if look.has_table(_MARKED) else ""


def may_be_marked(location: PostgresUrl, mark: str) -> bool:
    """Whether this database has this mark, or cannot be asked."""
    try:
        return marked(location) == mark
    except DBAPIError:
        return True


@contextmanager
def told(location: Location) -> Iterator[None]:
    """What a database fails with, in the platform's words, and without its password.

    Raises:
        UnavailableError: it does not answer, or refuses.
    """
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).partition("\n")[0]  # further lines may hold a row
        raise UnavailableError(
            "store-unavailable",
            f"the database {location} failed: {location.redact(reason) if isinstance(location, PostgresUrl) else reason}",
            resolution="Give the same command again when it answers.",
        ) from None


def _not_empty(location: Location) -> ConflictError:
    return ConflictError(
        "database-not-empty",
        f"the database {location} is not empty",
        resolution="Give a new one: what is there is never written over.",
    )
