"""Bring a database to the schema of this code. Alembic is imported only where there is something to do: it costs half a
second and 40 MB.

A migration runs in one transaction: either all of it is there, or nothing. Servers that start at once migrate once: the
first holds a lock (SQLite's write lock, an advisory lock of PostgreSQL), and the others find it done. Before an existing
SQLite database is changed it is copied beside itself; the copy is the way back when the new version disappoints.

On PostgreSQL other servers go on meanwhile. A migration that waits for its lock on a table makes everybody who comes later
wait behind it; so it waits a moment only, gives way, and tries again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.drivers.store.location import Location, PostgresUrl
from shellwego.drivers.store.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0023"
"""The revision of `schema`."""
_MOST_FAULTS = 5
_SCRIPTS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x5357_474D_4947
"""`SWGMIG`: PostgreSQL's advisory lock of those that migrate."""
_TURN_S, _TABLE_LOCK_S = 120, 3
"""How long to wait for others that migrate, and for a lock on a table."""
_BLOCKED = ("55P03", "40P01")
_TRIES, _PAUSE_S = 20, 1.0
_one_at_a_time = threading.Lock()
"""Alembic's context is the process's."""


def upgrade(location: Location, *, scripts: Path = _SCRIPTS, head: str = HEAD) -> None:
    """Bring the database (SQLite's is made where missing) to `head`.

    Raises:
        ConflictError: its schema is newer than this code.
        UnavailableError: others hold its tables for long.
    """
    if revision(location) == head:
        return
    from alembic import command  # noqa: PLC0415 - see the module's head

    _migrate(location, scripts, head, lambda config: command.upgrade(config, head))


def downgrade(location: Location, to: str, *, scripts: Path = _SCRIPTS) -> None:
    """Take the migrations after revision `to` (`base`: all) back, after copying a database of SQLite.

    Raises:
        ConflictError: its schema is newer than this code.
        UnavailableError: others hold its tables for long.
    """
    from alembic import command  # noqa: PLC0415 - see the module's head

    _migrate(location, scripts, to, lambda config: command.downgrade(config, to))


def make(location: Location, to: str, fill: Callable[[sa.Connection], None]) -> None:
    """Make the tables of revision `to` in an empty database, and fill them, in one transaction; `fill` may run again.

    Raises:
        ConflictError: the revision is newer than this code.
    """
    from alembic import command  # noqa: PLC0415 - see the module's head

    def act(config: Config) -> None:
        command.upgrade(config, to)
        fill(config.attributes["connection"])

    check_known(location, to)
    _migrate(location, _SCRIPTS, to, act)


def revision(location: Location) -> str:
    """The revision that the database is at; empty where it has no tables yet."""
    with connected(location) as connection:
        return revision_of(connection)


def check_schema(location: Location) -> None:
    """Refuse a database that says it has this code's schema and has another: one of a development version, whose migrations
    were edited after it was made. Each statement on it would fail, again and again.

    Raises:
        ConflictError: naming what is missing, and what is there that this code would not fill.
    """
    found = _columns(location)
    ours = {(table.name, column.name) for table in metadata.tables.values() for column in table.columns}
    needed = {column for column, required in found.items() if required}
    faults = [f"{table}.{column} is missing" for table, column in sorted(ours - set(found))]
    faults += [
        f"{table}.{column} is not known here" for table, column in sorted(needed - ours) if table in metadata.tables
    ]
    if not faults:
        return
    told = "; ".join(faults[:_MOST_FAULTS]) + (f" and {len(faults) - _MOST_FAULTS} more" * (len(faults) > _MOST_FAULTS))
    elsewhere = f"move {location.parent} away" if isinstance(location, Path) else "give another database"
    raise ConflictError(
        "schema-differs",
        f"the database {location} says that it has schema {HEAD}, but a development version made it otherwise: {told}",
        resolution=f"Start the version that made it; or {elsewhere} and start empty: its apps are then gone.",
    )


def _columns(location: Location) -> dict[tuple[str, str], bool]:
    """(table, column) → whether a row cannot be without it."""
    with connected(location) as connection:
        return {
            (table, column["name"]): not column["nullable"] and column["default"] is None
            for (_, table), columns in sa.inspect(connection).get_multi_columns().items()
            for column in columns
        }


def revision_of(connection: sa.Connection) -> str:
    """As `revision`, of a database that is open."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or ""


def check_known(location: Location, found: str, scripts: Path = _SCRIPTS) -> None:
    """Refuse a revision that this code does not know; raises `ConflictError`."""
    if not is_known(found, scripts):
        raise ConflictError(
            "schema-too-new",
            f"the database {location} has schema {found}, which this version of ShellWeGo does not know",
            resolution="Start the version that wrote it or a later one, or restore the copy made before the upgrade.",
        )


def is_known(revision: str, scripts: Path = _SCRIPTS) -> bool:
    """Whether this code has had this revision."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see the module's head

    return revision in {script.revision for script in ScriptDirectory(str(scripts)).walk_revisions()}


def _copy(source: Path, target: Path) -> None:
    """A consistent copy, for its owner only, on disk when this returns."""
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    reader, writer = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reader.backup(writer)
        os.fsync(descriptor)
    finally:
        reader.close()
        writer.close()
        os.close(descriptor)


def _migrate(location: Location, scripts: Path, target: str, action: Callable[[Config], None]) -> None:
    """Run `action` alone and in one transaction, where the database is not at `target` already."""
    for _ in range(_TRIES):
        try:
            with _one_at_a_time, connected(location, writing=True) as connection, connection.begin():
                _take_turn(connection)
                found = revision_of(connection)
                if found == target:
                    return
                if found:
                    check_known(location, found, scripts)
                    if isinstance(location, Path):
                        _copy(location, location.with_name(f"{location.name}.before-{target}"))
                action(_config(connection, scripts))
                return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _BLOCKED:
                raise
        time.sleep(_PAUSE_S)
    raise UnavailableError(
        "migration-blocked",
        f"the database {location} cannot be brought to schema {target}: others hold its tables",
        resolution="End long transactions and dumps (see pg_stat_activity), then start again.",
    )


def _config(connection: sa.Connection, scripts: Path) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - see the module's head

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextmanager
def connected(location: Location, *, writing: bool = False) -> Iterator[sa.Connection]:
    """A connection of its own; a file of SQLite is made where there is none."""
    if isinstance(location, PostgresUrl):
        engine = location.engine(poolclass=NullPool)
    else:
        engine = _sqlite_engine(location, "BEGIN IMMEDIATE" if writing else "BEGIN")
    with engine.connect() as connection:
        yield connection


def _sqlite_engine(path: Path, begin: str) -> sa.Engine:
    """The driver would begin late, after the first DDL statement; so it is told when."""
    engine = sa.create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(path, isolation_level=None),
        poolclass=NullPool,
        hide_parameters=True,
    )
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _take_turn(connection: sa.Connection) -> None:
    """Wait until nobody else migrates. On SQLite the transaction has begun with it."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_TURN_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_TABLE_LOCK_S}s'")
