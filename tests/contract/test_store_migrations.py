"""The way from one schema to the next, and back."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from shellwego.core.deployments import CanaryStep
from shellwego.core.errors import ConflictError
from shellwego.core.instances import Sleep
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store import migrate
from shellwego.drivers.store.rules import ENTITIES
from shellwego.drivers.store.schema import TABLES, metadata
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import eq
from tests.contract.store_contract import user

SCRIPTS = Path(migrate.__file__).parent / "migrations"
NEXT = f"{int(migrate.HEAD) + 1:04}"
LATER = """
import sqlalchemy as sa
from alembic import op

revision = "{next}"
down_revision = "{head}"


def upgrade() -> None:
    op.add_column("users", sa.Column("phone", sa.Text(), nullable=False, server_default=""))
    {then}


def downgrade() -> None:
    with op.batch_alter_table("users") as users:
        users.drop_column("phone")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The migrations of a later version, which has one more."""
    return later_version(tmp_path, then="pass")


def later_version(directory: Path, then: str) -> Path:
    scripts = directory / "migrations"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "later.py").write_text(LATER.format(then=then, next=NEXT, head=migrate.HEAD))
    return scripts


async def make_database(path: Path) -> None:
    """A database of this version with a row in it."""
    store = open_sqlite(path, SystemClock())
    await store.transact(lambda tx: tx.users.insert(user("a")))
    await store.close()


def columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[1] for row in connection.execute("PRAGMA table_info(users)")]


def emails(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT email FROM users")]


@pytest.fixture
def connection(path: Path) -> Iterator[sa.Connection]:
    migrate.upgrade(path)
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.mark.parametrize("table", ENTITIES)
def test_each_field_of_an_entity_has_its_column(table: str) -> None:
    assert set(TABLES[table].columns.keys()) == {field.name for field in fields(ENTITIES[table])}


def test_the_migrations_make_exactly_the_schema_of_this_code(connection: sa.Connection) -> None:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": metadata})
    assert compare_metadata(context, metadata) == []


def test_the_schemas_revision_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(SCRIPTS)).get_current_head() == migrate.HEAD


def test_a_current_database_is_left_alone(path: Path) -> None:
    migrate.upgrade(path)
    before = path.read_bytes()
    migrate.upgrade(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


async def test_an_upgrade_keeps_the_rows_and_a_copy_of_what_was(path: Path, scripts: Path) -> None:
    await make_database(path)
    migrate.upgrade(path, scripts=scripts, head=NEXT)
    copy = path.with_name(f"state.db.before-{NEXT}")
    assert (migrate.revision(path), migrate.revision(copy)) == (NEXT, migrate.HEAD)
    assert emails(path) == emails(copy) == ["a@example.org"]
    assert "phone" in columns(path)
    assert "phone" not in columns(copy)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


async def test_an_upgrade_can_be_taken_back(path: Path, scripts: Path) -> None:
    await make_database(path)
    migrate.upgrade(path, scripts=scripts, head=NEXT)
    migrate.downgrade(path, migrate.HEAD, scripts=scripts)
    assert migrate.revision(path) == migrate.HEAD
    assert "phone" not in columns(path)
    store = open_sqlite(path, SystemClock())
    assert await store.read(lambda tx: tx.users.select()) == [user("a")]
    await store.close()


async def test_everything_can_be_taken_back(path: Path) -> None:
    await make_database(path)
    migrate.downgrade(path, "base")
    assert (migrate.revision(path), columns(path)) == ("", [])


async def test_a_newer_schema_is_refused_and_left_alone(path: Path, scripts: Path) -> None:
    await make_database(path)
    migrate.upgrade(path, scripts=scripts, head=NEXT)
    with pytest.raises(ConflictError, match=f"schema {NEXT}") as caught:
        open_sqlite(path, SystemClock())
    assert caught.value.resolution
    assert "phone" in columns(path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("ALTER TABLE users DROP COLUMN version", "users.version is missing"),
        ("DROP TABLE images", "images.id is missing"),
        ("ALTER TABLE users RENAME COLUMN email TO mail", "users.email is missing; users.mail is not known here"),
    ],
)
def test_a_schema_that_only_says_it_is_ours_is_refused_and_left_alone(path: Path, change: str, fault: str) -> None:
    migrate.upgrade(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
    before = path.read_bytes()
    with pytest.raises(ConflictError, match="development version") as caught:
        open_sqlite(path, SystemClock())
    assert fault in caught.value.message
    assert str(path) in caught.value.message
    assert "Start the version that made it" in caught.value.resolution
    assert path.read_bytes() == before


async def test_a_column_that_need_not_be_filled_is_no_reason_to_refuse(path: Path) -> None:
    await make_database(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE users ADD COLUMN phone TEXT NOT NULL DEFAULT ''")
    store = open_sqlite(path, SystemClock())
    assert await store.read(lambda tx: tx.users.select()) == [user("a")]
    await store.close()


async def test_a_migration_that_fails_half_way_leaves_the_old_schema(path: Path, tmp_path: Path) -> None:
    await make_database(path)
    broken = later_version(tmp_path, then='op.execute("INSERT INTO nowhere VALUES (1)")')
    with pytest.raises(sa.exc.OperationalError, match="nowhere"):
        migrate.upgrade(path, scripts=broken, head=NEXT)
    assert migrate.revision(path) == migrate.HEAD
    assert "phone" not in columns(path)
    assert emails(path) == ["a@example.org"]


def insert_row(path: Path, table: str, texts: dict[str, str | None]) -> dict[str, object]:
    """A row of an older schema: these columns, and plain values in the others."""
    with closing(sqlite3.connect(path)) as connection:
        kinds = {row[1]: row[2] for row in connection.execute(f"PRAGMA table_info({table})")}
        row = {name: texts.get(name, "" if kind == "TEXT" else 1) for name, kind in kinds.items()}
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", list(row.values()))  # noqa: S608
        connection.commit()
        return dict(row)


def only_row(path: Path, table: str) -> dict[str, object]:
    with closing(sqlite3.connect(path)) as connection:
        cursor = connection.execute(f"SELECT * FROM {table}")  # noqa: S608
        names = [column[0] for column in cursor.description]
        return dict(zip(names, cursor.fetchone(), strict=True))


INSTANCE: dict[str, str | None] = {
    "id": "ins_a",
    "owner": "app",
    "desired": "serve",
    "phase": "healthy",
    "observed": "{}",
    "command": None,
}


async def test_instances_of_before_there_was_sleep_are_awake_and_can_be_taken_back(path: Path) -> None:
    migrate.upgrade(path, head="0001")
    row = insert_row(path, "instances", INSTANCE)
    store = open_sqlite(path, SystemClock())
    (instance,) = await store.read(lambda tx: tx.instances.select(eq("sleep", "awake")))
    assert (instance.id, instance.sleep) == ("ins_a", Sleep.AWAKE)
    await store.close()
    migrate.downgrade(path, "0001")
    assert only_row(path, "instances") == row


async def test_deployments_of_before_they_had_numbers_of_their_own_go_on_and_can_be_taken_back(path: Path) -> None:
    migrate.upgrade(path, head="0002")
    told: dict[str, str | None] = {"id": "dep_a", "state": "in_progress", "stage": "starting", "log_tail": "[]"}
    row = insert_row(path, "deployments", told)
    instance = insert_row(path, "instances", {**INSTANCE, "sleep": "awake"})
    store = open_sqlite(path, SystemClock())
    (deployment,) = await store.read(lambda tx: tx.deployments.select())
    assert (deployment.canary, deployment.step, deployment.stages) == (None, CanaryStep(), ())
    assert (deployment.surge, deployment.max_unavailable, deployment.release_command) == (None, None, None)
    assert deployment.weight == 100
    assert [i.deployment_id for i in await store.read(lambda tx: tx.instances.select())] == [""]
    await store.close()
    migrate.downgrade(path, "0002")
    assert (only_row(path, "deployments"), only_row(path, "instances")) == (row, instance)
