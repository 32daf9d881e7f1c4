"""The way from one schema to the next, and back."""

from __future__ import annotations

import asyncio
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from shellwego.control.loops.outbox import relay_audit
from shellwego.control.unit import Control
from shellwego.core.deployments import CanaryStep
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.instances import Sleep
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store import migrate
from shellwego.drivers.store.location import Location
from shellwego.drivers.store.postgres import open_postgres
from shellwego.drivers.store.rules import ENTITIES
from shellwego.drivers.store.schema import TABLES, metadata
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import Order, Store, eq
from tests.contract.postgres_server import PostgresServer
from tests.contract.store_samples import user

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
STARTING = """
import sys
from shellwego.drivers.store import location, migrate
migrate.upgrade(location.parse_url(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return tmp_path / "state.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


def open_store(location: Location) -> Store:
    return open_sqlite(location, SystemClock()) if isinstance(location, Path) else open_postgres(location)


@contextmanager
def connected(location: Location) -> Iterator[sa.Connection]:
    """A connection beside the platform's."""
    engine = sa.create_engine(f"sqlite:///{location}") if isinstance(location, Path) else location.engine()
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The migrations of a later version, which has one more."""
    return later_version(tmp_path, then="pass")


def later_version(directory: Path, then: str) -> Path:
    scripts = directory / "migrations"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "later.py").write_text(LATER.format(then=then, next=NEXT, head=migrate.HEAD))
    return scripts


async def make_database(location: Location) -> None:
    """A database of this version with a row in it."""
    store = open_store(location)
    await store.transact(lambda tx: tx.users.insert(user("a")))
    await store.close()


def columns(location: Location) -> list[str]:
    with connected(location) as connection:
        looking = sa.inspect(connection)
        return [column["name"] for column in looking.get_columns("users")] if looking.has_table("users") else []


def emails(location: Location) -> list[str]:
    with connected(location) as connection:
        return list(connection.exec_driver_sql("SELECT email FROM users").scalars())


@pytest.mark.parametrize("table", ENTITIES)
def test_each_field_of_an_entity_has_its_column(table: str) -> None:
    assert set(TABLES[table].columns.keys()) == {field.name for field in fields(ENTITIES[table])}


def test_the_migrations_make_exactly_the_schema_of_this_code(location: Location) -> None:
    migrate.upgrade(location)
    with connected(location) as connection:
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


async def test_an_upgrade_keeps_the_rows(location: Location, scripts: Path) -> None:
    await make_database(location)
    migrate.upgrade(location, scripts=scripts, head=NEXT)
    assert migrate.revision(location) == NEXT
    assert emails(location) == ["a@example.org"]
    assert "phone" in columns(location)


async def test_a_file_is_copied_before_an_upgrade(path: Path, scripts: Path) -> None:
    await make_database(path)
    migrate.upgrade(path, scripts=scripts, head=NEXT)
    copy = path.with_name(f"state.db.before-{NEXT}")
    assert (migrate.revision(path), migrate.revision(copy)) == (NEXT, migrate.HEAD)
    assert emails(path) == emails(copy) == ["a@example.org"]
    assert "phone" in columns(path)
    assert "phone" not in columns(copy)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


async def test_an_upgrade_can_be_taken_back(location: Location, scripts: Path) -> None:
    await make_database(location)
    migrate.upgrade(location, scripts=scripts, head=NEXT)
    migrate.downgrade(location, migrate.HEAD, scripts=scripts)
    assert migrate.revision(location) == migrate.HEAD
    assert "phone" not in columns(location)
    store = open_store(location)
    assert await store.read(lambda tx: tx.users.select()) == [user("a")]
    await store.close()


async def test_everything_can_be_taken_back(location: Location) -> None:
    await make_database(location)
    migrate.downgrade(location, "base")
    assert (migrate.revision(location), columns(location)) == ("", [])


async def test_a_newer_schema_is_refused_and_left_alone(location: Location, scripts: Path) -> None:
    await make_database(location)
    migrate.upgrade(location, scripts=scripts, head=NEXT)
    with pytest.raises(ConflictError, match=f"schema {NEXT}") as caught:
        open_store(location)
    assert caught.value.resolution
    assert "phone" in columns(location)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("ALTER TABLE users DROP COLUMN version", "users.version is missing"),
        ("DROP TABLE images", "images.id is missing"),
        ("ALTER TABLE users RENAME COLUMN email TO mail", "users.email is missing; users.mail is not known here"),
    ],
)
def test_a_schema_that_only_says_it_is_ours_is_refused_and_left_alone(
    location: Location, change: str, fault: str
) -> None:
    migrate.upgrade(location)
    with connected(location) as connection:
        connection.exec_driver_sql(change)
    before = columns(location)
    with pytest.raises(ConflictError, match="development version") as caught:
        open_store(location)
    assert fault in caught.value.message
    assert str(location) in caught.value.message
    assert "Start the version that made it" in caught.value.resolution
    assert columns(location) == before


async def test_a_column_that_need_not_be_filled_is_no_reason_to_refuse(location: Location) -> None:
    await make_database(location)
    with connected(location) as connection:
        connection.exec_driver_sql("ALTER TABLE users ADD COLUMN phone TEXT NOT NULL DEFAULT ''")
    store = open_store(location)
    assert await store.read(lambda tx: tx.users.select()) == [user("a")]
    await store.close()


async def test_a_migration_that_fails_half_way_leaves_the_old_schema(location: Location, tmp_path: Path) -> None:
    await make_database(location)
    broken = later_version(tmp_path, then='op.execute("INSERT INTO nowhere VALUES (1)")')
    with pytest.raises(sa.exc.DBAPIError, match="nowhere"):
        migrate.upgrade(location, scripts=broken, head=NEXT)
    assert migrate.revision(location) == migrate.HEAD
    assert "phone" not in columns(location)
    assert emails(location) == ["a@example.org"]


INSTANCE: dict[str, str | None] = {
    "id": "ins_a",
    "owner": "app",
    "desired": "serve",
    "phase": "healthy",
    "observed": "{}",
    "command": None,
}


def insert_row(location: Location, table: str, texts: dict[str, str | None]) -> dict[str, object]:
    """A row of an older schema: these columns, and plain values in the others."""
    with connected(location) as connection:
        kinds = {column["name"]: column["type"] for column in sa.inspect(connection).get_columns(table)}
        row = {name: texts.get(name, "" if isinstance(kind, sa.Text) else 1) for name, kind in kinds.items()}
        row |= {name: True for name, kind in kinds.items() if isinstance(kind, sa.Boolean)}
        connection.execute(sa.insert(sa.table(table, *(sa.column(name) for name in row))), row)
        return dict(row)


def only_row(location: Location, table: str) -> dict[str, object]:
    with connected(location) as connection:
        return dict(connection.execute(sa.select(sa.text("*")).select_from(sa.table(table))).mappings().one())


async def test_instances_of_before_there_was_sleep_are_awake_and_can_be_taken_back(location: Location) -> None:
    migrate.upgrade(location, head="0001")
    row = insert_row(location, "instances", INSTANCE)
    store = open_store(location)
    (instance,) = await store.read(lambda tx: tx.instances.select(eq("sleep", "awake")))
    assert (instance.id, instance.sleep) == ("ins_a", Sleep.AWAKE)
    await store.close()
    migrate.downgrade(location, "0001")
    assert only_row(location, "instances") == row


async def test_deployments_of_before_they_had_numbers_of_their_own_go_on_and_can_be_taken_back(
    location: Location,
) -> None:
    migrate.upgrade(location, head="0002")
    told: dict[str, str | None] = {"id": "dep_a", "state": "in_progress", "stage": "starting", "log_tail": "[]"}
    row = insert_row(location, "deployments", told)
    instance = insert_row(location, "instances", {**INSTANCE, "sleep": "awake"})
    store = open_store(location)
    (deployment,) = await store.read(lambda tx: tx.deployments.select())
    assert (deployment.canary, deployment.step, deployment.stages) == (None, CanaryStep(), ())
    assert (deployment.surge, deployment.max_unavailable, deployment.release_command) == (None, None, None)
    assert deployment.weight == 100
    assert [i.deployment_id for i in await store.read(lambda tx: tx.instances.select())] == [""]
    await store.close()
    migrate.downgrade(location, "0002")
    assert (only_row(location, "deployments"), only_row(location, "instances")) == (row, instance)


async def test_projects_of_before_there_were_numbers_have_none_and_can_be_taken_back(location: Location) -> None:
    migrate.upgrade(location, head="0013")
    rows = [insert_row(location, "projects", {"id": f"prj_{name}", "name": name}) for name in ("a", "b")]
    store = open_store(location)
    projects = await store.read(lambda tx: tx.projects.select())
    assert [project.network_number for project in projects] == [0, 0]
    await store.transact(lambda tx: tx.projects.update(replace(projects[0], network_number=1)))
    with pytest.raises(ConflictError):
        await store.transact(lambda tx: tx.projects.update(replace(projects[1], network_number=1)))
    await store.transact(lambda tx: tx.projects.delete("prj_a"))
    await store.close()
    migrate.downgrade(location, "0013")
    assert only_row(location, "projects") == rows[1]


def test_servers_that_start_at_once_migrate_once(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    servers = [subprocess.Popen([sys.executable, "-c", STARTING, url.dsn], stderr=subprocess.PIPE) for _ in range(3)]
    ended = [(server.communicate(timeout=120)[1].decode(), server.returncode) for server in servers]
    assert ended == [("", 0)] * 3
    assert migrate.revision(url) == migrate.HEAD


async def test_a_migration_gives_way_to_a_long_transaction_and_others_go_on(
    postgres: PostgresServer, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database()
    await make_database(url)
    monkeypatch.setattr(migrate, "_TABLE_LOCK_S", "0.05")
    monkeypatch.setattr(migrate, "_PAUSE_S", 0.01)
    store = open_postgres(url)
    with psycopg.connect(url.dsn) as dump:
        dump.execute("SELECT count(*) FROM users")
        with pytest.raises(UnavailableError) as caught:
            await asyncio.to_thread(migrate.upgrade, url, scripts=scripts, head=NEXT)
        await store.transact(lambda tx: tx.users.insert(user("b")))
    assert caught.value.code == "migration-blocked"
    migrate.upgrade(url, scripts=scripts, head=NEXT)
    assert emails(url) == ["a@example.org", "b@example.org"]
    await store.close()


OLD_AUDIT = sa.text(
    "INSERT INTO audit (id, time, actor, action, resource, allowed, detail, trace_id)"
    " VALUES (:id, 1.5, 'usr_1', 'apps:write', 'app_1', :allowed, '', '')"
)


def write_old_record(location: Location, id_: str) -> None:
    with connected(location) as connection:
        connection.execute(OLD_AUDIT, {"id": id_, "allowed": True})


async def test_audit_records_of_the_version_before_are_chained_by_this_one_and_can_be_taken_back(
    location: Location,
) -> None:
    """Those of before the upgrade, and those that the version before writes after it."""
    migrate.upgrade(location, head="0002")
    write_old_record(location, "aud_a")
    migrate.upgrade(location)
    write_old_record(location, "aud_b")
    store = open_store(location)
    control = Control(store, MemoryBus(), SystemClock())
    assert await relay_audit(control) == 2
    records = await store.read(lambda tx: tx.audit.select(order=Order("position")))
    assert [(record.id, record.position) for record in records] == [
        ("aud_a", "platform/000000000001"),
        ("aud_b", "platform/000000000002"),
    ]
    await store.close()
    migrate.downgrade(location, "0002")
    with connected(location) as connection:
        rows = connection.exec_driver_sql("SELECT id, time, actor FROM audit ORDER BY id").all()
    assert [tuple(row) for row in rows] == [("aud_a", 1.5, "usr_1"), ("aud_b", 1.5, "usr_1")]
