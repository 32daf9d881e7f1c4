"""Version N comes while N−1 serves: both share a schema, so writers of the old one go on through the migration."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from shellwego.drivers.store import migrate
from shellwego.drivers.store.location import PostgresUrl
from shellwego.drivers.store.postgres import STATEMENT_TIMEOUT_S
from tests.contract.postgres_server import PostgresServer
from tests.contract.store_databases import Database
from tests.contract.test_store_migrations import NEXT, columns, later_version

ROOT = Path(__file__).resolve().parents[2]
OLD_SERVER = """
import asyncio, os, sys
from pathlib import Path
from shellwego.core.errors import UnavailableError
from shellwego.core.tenancy import User
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.location import parse_url
from shellwego.drivers.store.postgres import open_postgres
from shellwego.drivers.store.sqlite import open_sqlite

def tell(kind, text):
    os.write(1, f"{kind} {text}\\n".encode())  # at once, so that a line is whole whenever the process is killed

async def write(store, worker):
    number = 0
    while True:
        name = f"{sys.argv[2]}-{worker}-{number}"
        try:
            await store.transact(lambda tx: tx.users.insert(User(id=name, email=name, created_at=1.0)))
            await store.transact(lambda tx: tx.users.update(tx.users.get(name)))
            assert (await store.read(lambda tx: tx.users.get(name))).version == 2
        except UnavailableError as error:
            tell("refused", error.message)
            continue
        tell("stored", name)
        number += 1

async def main():
    place = sys.argv[1]
    store = open_postgres(parse_url(place)) if "://" in place else open_sqlite(Path(place), SystemClock())
    await asyncio.gather(*(write(store, worker) for worker in range(4)))

asyncio.run(main())
"""


class OldServers:
    """Processes of this version that write; `stored` are the rows that they were told are stored."""

    def __init__(self, place: str, count: int) -> None:
        self._processes = [
            subprocess.Popen([sys.executable, "-c", OLD_SERVER, place, str(number)], stdout=subprocess.PIPE, text=True)
            for number in range(count)
        ]
        self.stored: list[str] = []
        self.refused: list[str] = []

    def hear(self, stored: int) -> None:
        """Until each has stored so many more."""
        for process in self._processes:
            heard = 0
            while heard < stored:
                assert process.stdout is not None
                heard += self._take(process.stdout.readline())

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            assert process.stdout is not None
            for line in process.stdout:
                self._take(line)
            process.wait()
            process.stdout.close()

    def _take(self, line: str) -> int:
        assert line, "an old server ended"
        kind, _, text = line.strip().partition(" ")
        if kind == "stored":
            self.stored.append(text)
        elif kind == "refused":
            self.refused.append(text)
        return kind == "stored"


@contextmanager
def old_servers(place: str, count: int) -> Iterator[OldServers]:
    servers = OldServers(place, count)
    try:
        yield servers
    finally:
        servers.kill()


@pytest.fixture
def fresh(request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path: Path) -> PostgresUrl | Path:
    """A database that may be brought to another schema."""
    return postgres.new_database() if request.param == "postgres" else tmp_path / "state.db"


@pytest.mark.parametrize(("fresh", "count"), [("sqlite", 1), ("postgres", 2)], indirect=["fresh"])
async def test_servers_of_the_old_version_write_on_while_the_new_one_migrates(
    fresh: PostgresUrl | Path, count: int, tmp_path: Path
) -> None:
    migrate.upgrade(fresh)
    place = fresh.dsn if isinstance(fresh, PostgresUrl) else str(fresh)
    scripts = later_version(tmp_path, then="pass")
    with old_servers(place, count) as servers:
        await asyncio.to_thread(servers.hear, 20)
        await asyncio.to_thread(migrate.upgrade, fresh, scripts=scripts, head=NEXT)
        await asyncio.to_thread(servers.hear, 20)
    assert migrate.revision(fresh) == NEXT
    assert "phone" in columns(fresh)
    assert servers.refused == []
    migrate.downgrade(fresh, migrate.HEAD, scripts=scripts)
    store = Database(fresh).open()
    stored = {user.id for user in await store.read(lambda tx: tx.users.select())}
    await store.close()
    assert set(servers.stored) <= stored
    assert len(set(servers.stored)) == len(servers.stored) >= 40 * count


FILL = """
INSERT INTO instances (id, app_id, owner, process, slot, release_id, content_hash, generation, command, memory_bytes,
    cpu_milli, disk_bytes, node_id, desired, phase, observed, placement_reason, created_at, phase_since, version)
SELECT 'ins_' || n, 'app_' || n % 1000, 'app', 'web', n % 8, 'rel_1', 'ab', 1, NULL, 1 << 28,
    500, 1 << 30, 'node_' || n % 100, 'serve', 'healthy', '{{}}', '', n, n, 1
FROM generate_series(1, {rows}) AS n
"""


@pytest.mark.parametrize("rows", [20_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
async def test_no_migration_writes_a_large_table_anew_or_locks_it_for_longer_than_a_request_may_wait(
    postgres: PostgresServer, rows: int
) -> None:
    url = postgres.new_database()
    migrate.upgrade(url, head="0001")
    postgres.sql(sql.SQL(FILL).format(rows=sql.Literal(rows)), url.name)
    files = stored_in(url)
    longest, ended = 0.0, asyncio.Event()

    async def write_on() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        async with await psycopg.AsyncConnection.connect(url.dsn, autocommit=True) as connection:
            await connection.execute(f"SET lock_timeout = '{STATEMENT_TIMEOUT_S}s'")
            while not ended.is_set():
                began = loop.time()
                await connection.execute("UPDATE instances SET version = version + 1 WHERE id = 'ins_7'")
                longest = max(longest, loop.time() - began)

    writing = asyncio.ensure_future(write_on())
    await asyncio.to_thread(migrate.upgrade, url)
    ended.set()
    await writing
    print(json.dumps({"rows": rows, "longest_wait_s": round(longest, 3)}))
    assert stored_in(url) == files


def stored_in(url: PostgresUrl) -> dict[str, int]:
    """Table → the file that holds it: another one after it was written anew."""
    with psycopg.connect(url.dsn) as connection:
        rows = connection.execute(
            "SELECT relname, relfilenode FROM pg_class WHERE relname IN ('instances', 'apps', 'events')"
        )
        return {str(name): int(file) for name, file in rows}
