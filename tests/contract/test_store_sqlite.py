"""The store's contract on SQLite, and what only a store on disk can show."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sqlite3
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shellwego.core.errors import UnavailableError
from shellwego.core.tenancy import User
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.sqlite import NEAR_ROWS, NEAR_STATEMENTS, NEAR_TICKS, TICK, SqliteStore, open_sqlite
from shellwego.ports.store import Op, Store, Transaction, Where, eq
from tests.contract.sqlite_statements import watched
from tests.contract.store_contract import StoreContract
from tests.contract.store_samples import user


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = open_sqlite(tmp_path / "state.db", SystemClock())
        yield store
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = open_sqlite(path, SystemClock())
    yield store
    await store.close()


async def test_what_was_committed_is_there_after_a_restart(path: Path) -> None:
    first = open_sqlite(path, SystemClock())
    await first.transact(lambda tx: tx.users.insert(user("a")))
    await first.close()
    second = open_sqlite(path, SystemClock())
    assert await second.read(lambda tx: tx.users.select()) == [user("a")]
    await second.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from shellwego.core.tenancy import User
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.sqlite import open_sqlite

async def write(store, worker):
    number = 0
    while True:
        name = f"{worker}-{number}"
        await store.transact(lambda tx: tx.users.insert(User(id=name, email=name, created_at=1.0)))
        print(name, flush=True)
        number += 1

async def main():
    store = open_sqlite(Path(sys.argv[1]), SystemClock())
    await asyncio.gather(*(write(store, worker) for worker in range(8)))

asyncio.run(main())
"""


async def test_every_acknowledged_write_survives_kill_9(path: Path) -> None:
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, path, stdout=asyncio.subprocess.PIPE)
    assert writer.stdout
    acknowledged = {await writer.stdout.readline() for _ in range(300)}
    writer.kill()
    acknowledged |= {line async for line in writer.stdout if line.endswith(b"\n")}
    await writer.wait()
    store = open_sqlite(path, SystemClock())
    stored = {found.id for found in await store.read(lambda tx: tx.users.select())}
    await store.close()
    assert len(acknowledged) >= 300
    assert {line.decode().strip() for line in acknowledged} <= stored


async def test_what_waits_for_the_disk_shares_one_commit(store: SqliteStore) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold(_tx: Transaction) -> None:
        entered.set()
        assert go_on.wait(10)

    seen: list[str] = []
    with watched(seen.append):
        first = asyncio.ensure_future(store.transact(hold))
        await asyncio.to_thread(entered.wait, 10)
        others = [asyncio.ensure_future(store.transact(lambda tx: tx.next("n"))) for _ in range(50)]
        await asyncio.sleep(0)  # each has put its function into the queue
        go_on.set()
        numbers = await asyncio.gather(*others)
        await first
    assert numbers == list(range(1, 51))
    assert seen.count("COMMIT") == 2


async def test_nobody_hears_of_success_before_the_commit(store: SqliteStore) -> None:
    async def write(name: str) -> None:
        await store.transact(lambda tx: tx.users.insert(user(name)))
        assert await store.read(lambda tx: tx.users.get(f"usr_{name}"))

    await asyncio.gather(*(write(str(number)) for number in range(30)))


def insert_user(name: str) -> Callable[[Transaction], User]:
    return lambda tx: tx.users.insert(user(name))


async def test_a_commit_that_fails_is_told_to_all_of_its_batch_and_the_store_goes_on(store: SqliteStore) -> None:
    def fail(statement: str) -> None:
        if statement == "COMMIT":
            raise sqlite3.OperationalError("disk I/O error")

    with watched(fail):
        writes = [store.transact(insert_user(name)) for name in ("a", "b", "c")]
        results = await asyncio.gather(*writes, return_exceptions=True)
    assert [getattr(result, "code", "") for result in results] == ["store-unavailable"] * 3
    await store.transact(lambda tx: tx.users.insert(user("d")))
    assert [found.id for found in await store.read(lambda tx: tx.users.select())] == ["usr_d"]


async def test_a_reader_keeps_its_snapshot_while_others_commit(store: SqliteStore) -> None:
    looked, go_on = threading.Event(), threading.Event()

    def look_twice(tx: Transaction) -> tuple[int, int]:
        before = tx.users.count()
        leave_the_event_loop(tx)
        looked.set()
        assert go_on.wait(10)
        return before, tx.users.count()

    reading = asyncio.ensure_future(store.read(look_twice))
    await asyncio.to_thread(looked.wait, 10)
    await store.transact(lambda tx: tx.users.insert(user("a")))
    go_on.set()
    assert await reading == (0, 0)
    assert await store.read(lambda tx: tx.users.count()) == 1


def leave_the_event_loop(tx: Transaction) -> None:
    """Ask more than a read may there."""
    for _ in range(NEAR_STATEMENTS + 1):
        tx.users.get("usr_none")


async def thread_of_read(store: SqliteStore, ask: Callable[[Transaction], object]) -> bool:
    """Whether the read is answered by the thread of the event loop."""

    def read(tx: Transaction) -> bool:
        ask(tx)
        return threading.current_thread() is threading.main_thread()

    return await store.read(read)


async def test_a_short_read_is_answered_in_the_event_loop_and_a_long_one_in_a_thread(store: SqliteStore) -> None:
    await store.transact(lambda tx: [tx.users.insert(user(f"{number:04}")) for number in range(8000)])
    assert await thread_of_read(store, lambda tx: tx.users.get("usr_0001"))
    assert await thread_of_read(store, lambda tx: tx.users.select(limit=NEAR_ROWS))
    assert not await thread_of_read(store, leave_the_event_loop)
    assert not await thread_of_read(store, lambda tx: tx.users.select(limit=NEAR_ROWS + 1))
    assert not await thread_of_read(store, lambda tx: tx.users.count(Where("email", Op.CONTAINS, "nobody")))
    assert await thread_of_read(store, lambda tx: tx.users.get("usr_0001"))
    assert len(await store.read(lambda tx: tx.users.select())) == 8000


async def test_short_reads_stay_in_the_event_loop_however_many_there_are(store: SqliteStore) -> None:
    for _ in range(NEAR_TICKS * TICK // 4):
        assert await thread_of_read(store, lambda tx: tx.users.get("usr_none"))


async def test_closing_finishes_what_was_asked_before(path: Path) -> None:
    store = open_sqlite(path, SystemClock())
    writes = [asyncio.ensure_future(store.transact(lambda tx: tx.next("n"))) for _ in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*writes) == list(range(1, 21))


async def test_only_the_owner_may_read_the_files(store: SqliteStore, path: Path) -> None:
    await store.transact(lambda tx: tx.users.insert(user("a")))
    files = list(path.parent.glob("state.db*"))
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert len(files) == 3


async def test_asking_by_an_index_never_scans_the_table(store: SqliteStore, path: Path) -> None:
    seen: list[str] = []
    with watched(seen.append):
        await store.read(lambda tx: tx.apps.select(eq("project_id", "prj_1"), limit=3))
        await store.read(lambda tx: tx.instances.select(eq("node_id", "node_1")))
        await store.read(lambda tx: tx.events.select(eq("seq", 0), limit=3))
    with sqlite3.connect(path) as connection:
        asked = [one for one in seen if one.startswith("SELECT")]
        assert len(asked) == 3
        for statement in asked:
            arguments = ["x"] * statement.count("?")
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", arguments)]
            assert all(step.startswith("SEARCH") or "ORDER BY" in step for step in plan), plan
    connection.close()


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(UnavailableError, match="not a database"):
        open_sqlite(path, SystemClock())


def damage(path: Path) -> None:
    """All but the first page, by which it is a database."""
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))


async def test_a_damaged_file_is_told_as_trouble_of_the_database(path: Path) -> None:
    await open_sqlite(path, SystemClock()).close()
    store = SqliteStore(path, SystemClock())
    damage(path)
    try:
        with pytest.raises(UnavailableError, match="malformed"):
            await store.read(lambda tx: tx.users.select())
    finally:
        await store.close()


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="nowhere"):
        open_sqlite(tmp_path / "nowhere" / "state.db", SystemClock())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.real
async def test_a_full_disk_fails_clearly_loses_nothing_and_heals(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"tmpfs", str(tmp_path).encode(), b"tmpfs", 0, b"size=3m") == 0
    store = open_sqlite(tmp_path / "state.db", SystemClock())
    try:
        (tmp_path / "ballast").write_bytes(bytes(1_200_000))
        acknowledged: list[str] = []

        async def write(number: int) -> None:
            name = f"{number:05}" + "x" * 1000
            await store.transact(lambda tx: tx.users.insert(User(id=name, email=name, created_at=1.0)))
            acknowledged.append(name)

        async def write_on() -> None:
            for start in range(0, 10_000, 8):
                await asyncio.gather(*(write(start + number) for number in range(8)))

        with pytest.raises(UnavailableError) as caught:
            await write_on()
        assert caught.value.code == "disk-full"
        (tmp_path / "ballast").unlink()
        await write(99_999)
        stored = [found.id for found in await store.read(lambda tx: tx.users.select())]
        assert set(acknowledged) <= set(stored)
        assert stored[-1] == acknowledged[-1]
    finally:
        await store.close()
        assert libc.umount2(str(tmp_path).encode(), 0) == 0
