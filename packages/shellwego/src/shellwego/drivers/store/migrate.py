"""Bring a database to the schema of this code. Alembic is imported only where there is something to do: it costs half a
second and 40 MB.

A migration runs in one transaction: either all of it is there, or nothing. Before an existing SQLite database is changed it
is copied beside itself; the copy is the way back when the new version disappoints.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from shellwego.core.errors import ConflictError
from shellwego.drivers.store.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0005"
"""The revision of `schema`."""
_MOST_FAULTS = 5
_SCRIPTS = Path(__file__).parent / "migrations"


def upgrade(path: Path, *, scripts: Path = _SCRIPTS, head: str = HEAD) -> None:
    """Bring the SQLite database at `path` (made where missing) to `head`.

    Raises:
        ConflictError: its schema is newer than this code.
    """
    found = revision(path)
    if found == head:
        return
    if found:
        _check_known(path, found, scripts)
        _copy(path, path.with_name(f"{path.name}.before-{head}"))
    from alembic import command  # noqa: PLC0415 - see the module's head

    _migrate(path, scripts, lambda config: command.upgrade(config, head))


def downgrade(path: Path, to: str, *, scripts: Path = _SCRIPTS) -> None:
    """Take the migrations after revision `to` (`base`: all) back, after copying the database.

    Raises:
        ConflictError: its schema is newer than this code.
    """
    found = revision(path)
    _check_known(path, found, scripts)
    _copy(path, path.with_name(f"{path.name}.before-{to}"))
    from alembic import command  # noqa: PLC0415 - see the module's head

    _migrate(path, scripts, lambda config: command.downgrade(config, to))


def revision(path: Path) -> str:
    """The revision that the database is at; empty where it has no tables yet."""
    connection = sqlite3.connect(path)
    try:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall() if tables else []
        return str(rows[0][0]) if rows else ""
    finally:
        connection.close()


def check_schema(path: Path) -> None:
    """Refuse a database that says it has this code's schema and has another: one of a development version, whose migrations
    were edited after it was made. Each statement on it would fail, again and again.

    Raises:
        ConflictError: naming what is missing, and what is there that this code would not fill.
    """
    found = _columns(path)
    ours = {(table.name, column.name) for table in metadata.tables.values() for column in table.columns}
    needed = {column for column, required in found.items() if required}
    faults = [f"{table}.{column} is missing" for table, column in sorted(ours - set(found))]
    faults += [
        f"{table}.{column} is not known here" for table, column in sorted(needed - ours) if table in metadata.tables
    ]
    if not faults:
        return
    told = "; ".join(faults[:_MOST_FAULTS]) + (f" and {len(faults) - _MOST_FAULTS} more" * (len(faults) > _MOST_FAULTS))
    raise ConflictError(
        "schema-differs",
        f"the database {path} says that it has schema {HEAD}, but a development version made it otherwise: {told}",
        resolution=f"Start the version that made it; or move {path.parent} away and start empty: its apps are then gone.",
    )


def _columns(path: Path) -> dict[tuple[str, str], bool]:
    """(table, column) → whether a row cannot be without it."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            'SELECT m.name, c.name, c."notnull" AND c.dflt_value IS NULL FROM sqlite_master m, pragma_table_info(m.name) c'
            " WHERE m.type = 'table'"
        )
        return {(table, column): bool(required) for table, column, required in rows}


def _check_known(path: Path, found: str, scripts: Path) -> None:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see the module's head

    known = {script.revision for script in ScriptDirectory(str(scripts)).walk_revisions()}
    if found not in known:
        raise ConflictError(
            "schema-too-new",
            f"the database {path} has schema {found}, which this version of ShellWeGo does not know",
            resolution="Start the version that wrote it or a later one, or restore the copy made before the upgrade.",
        )


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


def _migrate(path: Path, scripts: Path, action: Callable[[Config], None]) -> None:
    from alembic.config import Config  # noqa: PLC0415 - see the module's head

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = sa.create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(path, isolation_level=None), poolclass=NullPool
    )
    sa.event.listen(engine, "begin", _begin)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        action(config)


def _begin(connection: Any) -> None:
    """The driver would begin late, after the first DDL statement."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
