"""The store's contract on PostgreSQL, and what only a server with many clients can show."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from shellwego.core.errors import ConflictError, InvalidError, UnavailableError
from shellwego.core.events import Counter
from shellwego.core.tenancy import User
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store import postgres as driver
from shellwego.drivers.store.location import PostgresUrl, parse_url
from shellwego.drivers.store.postgres import LOCK_TIMEOUT_S, RETRIES, PostgresStore, open_postgres
from shellwego.ports.store import Store, Transaction, eq
from tests.contract.postgres_server import PostgresServer, running_postgres
from tests.contract.store_contract import StoreContract
from tests.contract.store_samples import app, user


class TestPostgresStore(StoreContract):
    @pytest.fixture
    async def store(self, url: PostgresUrl) -> AsyncIterator[Store]:
        store = open_postgres(url)
        yield store
        await store.close()


@pytest.fixture
def url(postgres: PostgresServer) -> PostgresUrl:
    return postgres.emptied_database()


@pytest.fixture
async def store(url: PostgresUrl) -> AsyncIterator[PostgresStore]:
    store = open_postgres(url)
    yield store
    await store.close()


def add_one(tx: Transaction) -> None:
    counter = tx.counters.get("n")
    assert counter
    tx.counters.update(replace(counter, value=counter.value + 1))


def insert_user(name: str) -> Callable[[Transaction], User]:
    return lambda tx: tx.users.insert(user(name))


def end_connections(server: PostgresServer, url: PostgresUrl, pids: list[int] | None = None) -> None:
    """As a restart of the server, or a network that forgets, would."""
    server.sql(
        sql.SQL(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND ({} IS NULL OR pid = ANY({}))"
        ).format(sql.Literal(url.name), sql.Literal(pids), sql.Literal(pids))
    )


async def test_two_servers_that_change_one_row_lose_nothing(store: PostgresStore, url: PostgresUrl) -> None:
    other = open_postgres(url)
    await store.transact(lambda tx: tx.counters.insert(Counter(id="n", value=0)))
    await asyncio.gather(*((store, other)[n % 2].transact(add_one) for n in range(120)))
    await other.close()
    assert await store.read(lambda tx: tx.counters.get("n")) == Counter(id="n", value=120, version=121)


async def test_what_two_transactions_decide_from_each_others_rows_holds_as_if_they_had_run_in_turn(
    store: PostgresStore, url: PostgresUrl
) -> None:
    other = open_postgres(url)
    both = threading.Barrier(2, timeout=10)
    first_tries = 2

    def work(name: str) -> Callable[[Transaction], object]:
        def insert_if_none(tx: Transaction) -> None:
            nonlocal first_tries
            alone = not tx.users.select()
            if first_tries:
                first_tries -= 1
                both.wait()
            if alone:
                tx.users.insert(user(name))

        return insert_if_none

    await asyncio.gather(store.transact(work("a")), other.transact(work("b")))
    assert await store.read(lambda tx: tx.users.count()) == 1
    await other.close()


async def test_a_key_that_was_taken_after_the_transaction_began_is_seen_and_not_refused(
    store: PostgresStore, url: PostgresUrl
) -> None:
    other = open_postgres(url)
    began, taken = threading.Event(), threading.Event()

    def use_or_make(tx: Transaction) -> str:
        tx.projects.count()  # the snapshot is taken here
        if not began.is_set():
            began.set()
            assert taken.wait(10)
            return tx.users.insert(replace(user("a"), id="usr_mine")).id
        return tx.users.select(eq("email", "a@example.org"))[0].id

    using = asyncio.ensure_future(store.transact(use_or_make))
    await asyncio.to_thread(began.wait, 10)
    await other.transact(insert_user("a"))
    taken.set()
    assert await using == "usr_a"
    await other.close()


@pytest.mark.parametrize("swallowed", [False, True])
async def test_a_transaction_that_meets_others_each_time_gives_up_and_stores_nothing(
    store: PostgresStore, url: PostgresUrl, swallowed: bool
) -> None:
    other = open_postgres(url)
    await store.transact(lambda tx: tx.counters.insert(Counter(id="n", value=0)))
    tries = 0

    def disturbed(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        tx.users.insert(user("a"))
        tx.counters.get("n")
        with closing(psycopg.connect(url.dsn)) as connection:
            connection.execute("UPDATE counters SET value = value + 1, version = version + 1")
            connection.commit()
        try:
            add_one(tx)
        except Exception:
            if not swallowed:
                raise

    with pytest.raises(UnavailableError) as caught:
        await store.transact(disturbed)
    assert (caught.value.code, tries) == ("store-busy", RETRIES + 1)
    assert await store.read(lambda tx: tx.users.count()) == 0
    await other.close()


async def test_what_is_done_apart_waits_for_no_work_that_the_database_has_run_again(store: PostgresStore) -> None:
    apart = store.apart()
    await store.transact(lambda tx: tx.counters.insert(Counter(id="n", value=0)))
    alone, done = asyncio.Event(), threading.Event()
    loop, tries = asyncio.get_running_loop(), 0

    def meets_another(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise driver._Again
        loop.call_soon_threadsafe(alone.set)
        assert done.wait(60)

    long = asyncio.ensure_future(store.transact(meets_another))
    await alone.wait()
    behind = asyncio.ensure_future(store.transact(insert_user("behind")))
    await apart.transact(add_one)
    assert await apart.read(lambda tx: (tx.counters.get("n"), tx.users.count())) == (
        Counter(id="n", value=1, version=2),
        0,
    )
    assert not behind.done()
    await apart.close()
    done.set()
    await asyncio.gather(long, behind)
    assert await store.read(lambda tx: tx.users.count()) == 1


@pytest.mark.parametrize("kind", ["transact", "read"])
async def test_connections_that_the_server_ended_are_made_anew(
    store: PostgresStore, postgres: PostgresServer, url: PostgresUrl, kind: str
) -> None:
    await asyncio.gather(*(store.read(lambda tx: tx.users.count()) for _ in range(8)))
    await store.transact(insert_user("a"))
    end_connections(postgres, url)
    assert await getattr(store, kind)(lambda tx: tx.users.count()) == 1


async def test_a_server_that_stands_still_in_a_transaction_holds_up_others_for_two_seconds_and_loses_nothing(
    store: PostgresStore, url: PostgresUrl
) -> None:
    other, asleep, wake = open_postgres(url), asyncio.Event(), threading.Event()
    loop, tries = asyncio.get_running_loop(), 0
    await store.transact(lambda tx: tx.counters.insert(Counter(id="n", value=0)))

    def stand_still(tx: Transaction) -> None:
        nonlocal tries
        add_one(tx)
        tries += 1
        if tries == 1:
            loop.call_soon_threadsafe(asleep.set)
            assert wake.wait(60)

    paused = asyncio.ensure_future(store.transact(stand_still))
    await asleep.wait()
    async with asyncio.timeout(LOCK_TIMEOUT_S - 1):
        await other.transact(add_one)
    wake.set()
    await paused
    assert (tries, await store.read(lambda tx: tx.counters.get("n"))) == (2, Counter(id="n", value=2, version=3))
    await other.close()


async def test_who_only_reads_may_reckon_for_longer_than_who_holds_locks(store: PostgresStore) -> None:
    def reckons(tx: Transaction) -> int:
        users = tx.users.count()
        threading.Event().wait(driver.IDLE_TIMEOUT_S + 0.5)
        return users + tx.apps.count()

    assert await store.read(reckons) == 0


async def test_a_connection_lost_before_the_commit_costs_a_second_try_only(
    store: PostgresStore, postgres: PostgresServer, url: PostgresUrl
) -> None:
    tries = 0

    def work(tx: Transaction) -> User:
        nonlocal tries
        tries += 1
        made = tx.users.insert(user("a"))
        if tries == 1:
            end_connections(postgres, url)
        assert tx.users.count() == 1
        return made

    await store.transact(work)
    assert tries == 2
    assert await store.read(lambda tx: tx.users.select()) == [user("a")]


@pytest.mark.parametrize("stored", [False, True])
async def test_a_connection_lost_at_the_commit_is_told_and_not_tried_again(
    store: PostgresStore, postgres: PostgresServer, url: PostgresUrl, stored: bool
) -> None:
    def lose(connection: Any, _cursor: object, statement: str, *_: object) -> None:
        if statement == "COMMIT":
            raw = connection.connection.driver_connection
            if stored:
                raw.execute("COMMIT")
            end_connections(postgres, url, [raw.info.backend_pid])

    tries: list[int] = []
    sa.event.listen(sa.Engine, "before_cursor_execute", lose)
    try:
        with pytest.raises(UnavailableError) as caught:
            await store.transact(lambda tx: (tries.append(1), tx.users.insert(user("a"))))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", lose)
    assert (caught.value.code, len(tries)) == ("commit-unknown", 1)
    assert "idempotency" in caught.value.resolution
    assert await store.read(lambda tx: tx.users.count()) == int(stored)


async def test_time_is_the_databases(store: PostgresStore, url: PostgresUrl) -> None:
    with closing(psycopg.connect(url.dsn)) as connection:
        (before,) = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone() or (0,)
    now = await store.transact(lambda tx: tx.now())
    assert isinstance(now, float)
    assert before < now < before + 60
    virtual = open_postgres(url, clock=VirtualClock(start=1000.0))
    assert await virtual.read(lambda tx: tx.now()) == 1000.0
    await virtual.close()


async def test_a_statement_that_takes_too_long_is_ended(
    postgres: PostgresServer, url: PostgresUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        driver,
        "_SESSION",
        driver._SESSION.replace(f"lock_timeout = '{driver.LOCK_TIMEOUT_S}s'", "lock_timeout = '50ms'"),
    )
    store = open_postgres(url)
    with closing(psycopg.connect(url.dsn)) as connection:
        connection.execute("LOCK TABLE users")
        with pytest.raises(UnavailableError, match="lock timeout"):
            await store.read(lambda tx: tx.users.count())
    assert await store.read(lambda tx: tx.users.count()) == 0
    await store.close()


async def test_what_the_database_refuses_for_another_reason_is_a_defect_that_tells_no_row(
    postgres: PostgresServer,
) -> None:
    url = postgres.new_database()
    store = open_postgres(url)
    postgres.sql(sql.SQL("ALTER TABLE users ADD COLUMN mail text NOT NULL"), url.name)
    with pytest.raises(RuntimeError) as caught:
        await store.transact(insert_user("canary"))
    assert "canary" not in f"{caught.value} {caught.value.__cause__}"
    postgres.sql(sql.SQL("ALTER TABLE users RENAME COLUMN email TO post"), url.name)
    with pytest.raises(RuntimeError, match="42703"):
        await store.transact(insert_user("canary"))
    await store.close()


async def test_every_write_that_was_told_is_there_after_a_crash_of_the_server() -> None:
    with running_postgres() as server:
        store = open_postgres(server.new_database())
        told: list[str] = []

        async def write(worker: int) -> None:
            for number in range(10_000):
                try:
                    await store.transact(insert_user(f"{worker}-{number}"))
                except UnavailableError:
                    return
                told.append(f"usr_{worker}-{number}")

        writing = [asyncio.ensure_future(write(worker)) for worker in range(8)]
        while len(told) < 100:  # noqa: ASYNC110 - each is a commit
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.stop, signal.SIGQUIT)
        await asyncio.gather(*writing)
        await asyncio.to_thread(server.start)
        stored = [found.id for found in await store.read(lambda tx: tx.users.select())]
        await store.transact(insert_user("later"))
        await store.close()
    assert set(told) <= set(stored)
    assert len(stored) <= len(told) + 8


async def test_a_server_that_is_not_there_is_told_without_the_password(tmp_path: Any) -> None:
    url = parse_url(f"postgresql://shellwego:c4nary@/swg?host={tmp_path}")
    with pytest.raises(UnavailableError) as caught:
        open_postgres(url)
    assert "postgresql://shellwego@/swg does not answer" in caught.value.message
    assert "c4nary" not in f"{caught.value.message} {url!r} {url} {caught.value.__cause__}"


def test_a_wrong_password_is_told_without_it(postgres: PostgresServer) -> None:
    url = parse_url(postgres.url("nowhere", password="c4nary"))
    with pytest.raises(UnavailableError, match='database "nowhere" does not exist') as caught:
        open_postgres(url)
    assert "c4nary" not in str(caught.value)


def test_a_database_that_cannot_hold_every_character_is_refused(postgres: PostgresServer) -> None:
    postgres.sql(sql.SQL("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'"))
    with pytest.raises(ConflictError) as caught:
        open_postgres(parse_url(postgres.url("latin")))
    assert caught.value.code == "database-encoding"


async def test_text_sorts_by_code_points_whatever_the_locale_of_the_database(postgres: PostgresServer) -> None:
    postgres.sql(sql.SQL("CREATE DATABASE german TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de'"))
    store = open_postgres(parse_url(postgres.url("german")))
    await TestPostgresStore().test_text_sorts_by_code_points(store)
    await store.transact(lambda tx: tx.apps.insert(app("Örtchen", project="prj_2")))
    await store.close()
    columns = postgres.sql(
        sql.SQL(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'"
        ),
        "german",
    )
    assert columns == []


async def test_asking_by_an_index_never_scans_the_table(store: PostgresStore, url: PostgresUrl) -> None:
    seen: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        seen.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        await store.read(lambda tx: tx.apps.select(eq("project_id", "prj_1"), limit=3))
        await store.read(lambda tx: tx.instances.select(eq("node_id", "node_1")))
        await store.read(lambda tx: tx.events.select(eq("seq", 0), limit=3))
        await store.read(lambda tx: tx.apps.get("app_1"))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    with closing(psycopg.connect(url.dsn)) as connection:
        connection.execute("SET enable_seqscan = off")
        for statement, parameters in (each for each in seen if each[0].startswith("SELECT")):
            plan = str(connection.execute(f"EXPLAIN {statement}".encode(), parameters).fetchall())
            assert "Index" in plan, plan
            assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize(
    "text",
    [
        "mysql://u:c4nary@h/d",
        "c4nary",
        "postgresql://u:c4nary@h",
        "postgresql://h/d?password=c4nary",
        "postgresql://u:c4nary@h:port/d",
        "",
    ],
)
def test_what_is_no_url_of_a_database_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_url(text)
    assert caught.value.errors[0].field == "database.url"
    assert "c4nary" not in f"{caught.value.message} {caught.value.resolution} {caught.value.__context__!r:.0}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("shellwego:old@db.example/swg", "shellwego:new@db.example/swg"),
        ("shellwego:pw@db.example/swg", "shellwego:pw@db.example:5432/swg?sslmode=verify-full"),
        ("shellwego@/swg?host=/run/postgresql", "postgres@/swg?host=/run/postgresql&port=5432"),
        ("shellwego@db.example/swg", "shellwego@/swg?host=DB.example"),
        ("one.example,two.example/swg", "/swg?host=two.example:5432&host=one.example:5432"),
    ],
)
def test_a_database_is_the_same_by_any_way_to_it(before: str, now: str) -> None:
    assert parse_url(f"postgresql://{before}").place == parse_url(f"postgresql://{now}").place


@pytest.mark.parametrize("other", ["db2.example/swg", "db.example:5433/swg", "db.example/swg2", "/swg?host=/run"])
def test_a_database_of_another_host_port_or_name_is_another(other: str) -> None:
    assert parse_url("postgresql://db.example/swg").place != parse_url(f"postgresql://{other}").place


@pytest.mark.parametrize("names", ["service={}", "options=-csearch_path%3D{}"])
def test_a_database_that_a_parameter_names_is_another_by_that(names: str) -> None:
    one, other = (parse_url(f"postgresql:///swg?{names.format(name)}") for name in ("one", "other"))
    assert one.place != other.place


def test_hosts_and_ports_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InvalidError) as refused:
        parse_url("postgresql:///swg?host=a:1&host=b:none")
    assert "hosts and ports" in refused.value.message
