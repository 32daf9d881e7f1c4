"""PostgreSQL: each transaction in a thread, SERIALIZABLE, and tried again where it met another; reads on a snapshot.

PostgreSQL lets transactions run side by side and ends one of those that could not have run one after the other. What was
ended so left nothing, so it runs again, up to `RETRIES` times. Its first try ran beside others; from then on it runs alone
in this server, and one after the other with the retries of other servers (by a lock that is taken before the snapshot is),
or hot rows (a counter) would end it again and again. What has a time by which it is to be done (the renewal of leases) waits
for none of that: it has threads and connections of its own (`apart`), and is tried again at once.

A connection that is lost before the COMMIT left nothing either, and the transaction runs again on a new one. Lost at the
COMMIT, nobody knows: that is told, and not tried again, for the change may be there.

Traps. A refused statement spoils the whole transaction here, unlike on SQLite: what may be refused runs in a savepoint of
its own. COMMIT of a spoilt transaction says nothing and rolls back: so its state is looked at before. A unique key may be
taken by a row that this transaction does not see, as it began earlier: then it runs again, and sees it.

A read is a snapshot that may miss what is just being committed, but it never sees half of it. Time is the database's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import DBAPIError, IntegrityError

from shellwego.core.errors import ConflictError, ShellWeGoError, UnavailableError
from shellwego.drivers.store.location import PostgresUrl
from shellwego.drivers.store.migrate import check_schema, upgrade
from shellwego.drivers.store.schema import TABLES
from shellwego.drivers.store.sql import Scope, SqlTransaction, call, refusal
from shellwego.drivers.store.turns import Turns
from shellwego.ports.clock import Clock
from shellwego.ports.store import UNIQUE, UNIQUE_IF_GIVEN, Transaction

T = TypeVar("T")

RETRIES = 10
"""Each costs little, and what met others ten times over met them by their luck: a database that has few rows yet takes
neighbours for the same, and first tries of other servers ask for no lock."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2
"""Before the first retry, at most, and before any; each further one may wait twice as long."""
WRITERS, READERS = 8, 4
"""Connections of each kind, with a thread each."""
APART = 1
"""Of each kind, for what is done apart."""
CONNECTIONS = WRITERS + READERS + 2 * APART
STATEMENT_TIMEOUT_S, LOCK_TIMEOUT_S = 20, 10
IDLE_TIMEOUT_S = 2
"""A server that stands still in the middle of a transaction loses it, and what it locked, before its leases run out: else
nobody could take them over. Where it was only slow, the transaction runs again."""
PONDERS_S = 30
"""Who only reads locks nothing, and may reckon for longer with what it has read; by that it is dead, or stands still."""
_IDLE_CONNECTION_S = 1800
_BEGIN_WRITE = "BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL enable_seqscan = off"
"""Whoever reads a table from end to end has read all that others write into it. A small table would be read so even where
one row is looked for by its id (PostgreSQL documentation, section 13.2.3)."""
_BEGIN_RETRY = (_BEGIN_WRITE, "LOCK TABLE alembic_version IN SHARE UPDATE EXCLUSIVE MODE")
"""That mode hinders nobody but those who ask for it too."""
_BEGIN_READ = (
    f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = '{PONDERS_S}s'"
)
_NOW = "SELECT extract(epoch FROM transaction_timestamp())::float8"
_SESSION = (
    f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'; SET lock_timeout = '{LOCK_TIMEOUT_S}s';"
    f" SET idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_S}s';"
    " SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
_MET_ANOTHER = ("40001", "40P01")
_DISK_FULL = "53100"
_OUTAGES = ("08", "25006", "53", "55P03", "57", "58")
"""SQLSTATEs, or their beginnings: connection, read-only standby, resources, waited too long, operator, system."""


def open_postgres(url: PostgresUrl, *, clock: Clock | None = None) -> PostgresStore:
    """Open the database, migrated where needed. With `clock` time is that clock's, for tests on virtual time.

    Raises:
        UnavailableError: it does not answer, or lets us not in.
        ConflictError: a newer version of the platform wrote it, or a development version with another schema; or it cannot
            keep what we write.
    """
    engine = url.engine(isolation_level="AUTOCOMMIT", pool_size=CONNECTIONS, pool_recycle=_IDLE_CONNECTION_S)
    sa.event.listen(engine, "connect", _prepare)
    try:
        with engine.connect() as connection:
            _check_abilities(url, connection)
        upgrade(url)
        check_schema(url)
    except DBAPIError as error:
        engine.dispose()
        raise _unavailable(url, error) from None
    except ShellWeGoError:
        engine.dispose()
        raise
    return PostgresStore(url, engine, clock)


def _prepare(connection: Any, _: object) -> None:
    """Limits of a new connection, outside of any transaction, or its end would take them back."""
    connection.autocommit = True
    connection.execute(_SESSION)


def _check_abilities(url: PostgresUrl, connection: sa.Connection) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise ConflictError(
            "database-encoding",
            f"the database {url} keeps text as {encoding}, and cannot hold every character",
            resolution="Make one with: CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'",
        )
    if not connection.exec_driver_sql("SELECT 1 FROM pg_collation WHERE collname = 'und-x-icu'").scalar():
        raise ConflictError(
            "database-without-icu",
            f"the server of the database {url} was built without ICU, by which text is searched without regard to case",
            resolution="Use a PostgreSQL with ICU, as Debian's and Ubuntu's are.",
        )


def _cause(error: DBAPIError | psycopg.Error) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _sqlstate(error: DBAPIError | psycopg.Error) -> str:
    return getattr(_cause(error), "sqlstate", None) or ""


def _is_outage(error: DBAPIError | psycopg.Error) -> bool:
    """The database's trouble, not the caller's. A failed attempt to connect has no SQLSTATE."""
    state = _sqlstate(error)
    if state:
        return state.startswith(_OUTAGES)
    return isinstance(_cause(error), psycopg.OperationalError | psycopg.InterfaceError)


def _unavailable(url: PostgresUrl, error: DBAPIError | psycopg.Error) -> UnavailableError:
    if _sqlstate(error) == _DISK_FULL:
        return UnavailableError(
            "disk-full", "the disk of the platform's database is full", resolution="Free space; nothing was lost."
        )
    reason = url.redact(str(_cause(error)).partition("\n")[0])
    return UnavailableError("store-unavailable", f"the database {url} does not answer: {reason}")


class _Again(Exception):
    """What was tried left nothing, and may succeed when it is tried again."""


def _keys() -> Mapping[str, Sequence[str]]:
    """Name of a unique constraint → its fields."""
    primary = {f"{table}_pkey": ("id",) for table in TABLES}
    given = {f"uq_{table}_{field}": (field,) for table, fields in UNIQUE_IF_GIVEN.items() for field in fields}
    return primary | given | {f"uq_{table}_{'_'.join(key)}": key for table, keys in UNIQUE.items() for key in keys}


_KEYS = _keys()


def _violated_key(error: IntegrityError) -> Sequence[str] | None:
    diagnosis = getattr(error.orig, "diag", None)
    return _KEYS.get(str(getattr(diagnosis, "constraint_name", "")))


class _Scope(Scope[sa.Connection]):
    """One try of a transaction; `spoilt` once it cannot be committed any more, whatever its function makes of that."""

    def __init__(self, connection: sa.Connection, *, writable: bool) -> None:
        super().__init__(connection, writable=writable)
        self._driver: Any = connection.connection.driver_connection
        self._in_savepoint = False
        self._met_another = False

    @property
    def spoilt(self) -> bool:
        return self._met_another or self._driver.info.transaction_status != TransactionStatus.INTRANS

    def rows(self, statement: sa.Select[Any], values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        return self.read().execute(statement, values).all()

    def change(self, table: sa.Table, statement: sa.Insert | sa.Update | sa.Delete, values: Mapping[str, Any]) -> int:
        connection = self.write()
        if statement.is_delete or (statement.is_update and table.name not in UNIQUE):
            return connection.execute(statement, values).rowcount
        self._driver.execute("RELEASE w; SAVEPOINT w" if self._in_savepoint else "SAVEPOINT w", prepare=False)
        self._in_savepoint = True
        try:
            return connection.execute(statement, values).rowcount
        except IntegrityError as error:
            self._driver.execute("ROLLBACK TO w", prepare=False)
            key = _violated_key(error)
            if key is not None and not self._sees(table, key, values):
                self._met_another = True
                raise _Again from None
            raise refusal(table, key) from None  # the error's text may hold the row

    def _sees(self, table: sa.Table, key: Sequence[str], values: Mapping[str, Any]) -> bool:
        holder = sa.select(table.c.id).where(*(table.c[field] == values[field] for field in key))
        return self.read().execute(holder).first() is not None


class PostgresStore:
    """See `ports.store.Store`; made by `open_postgres`."""

    def __init__(self, url: PostgresUrl, engine: sa.Engine, clock: Clock | None, *, apart: bool = False) -> None:
        self._url = url
        self._engine = engine
        self._clock = clock
        self._apart = apart
        self._begin_retry = (_BEGIN_WRITE,) if apart else _BEGIN_RETRY
        self._turns = Turns()
        writers, readers = (APART, APART) if apart else (WRITERS, READERS)
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix="store-writer")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="store-reader")
        self._closed = False

    def apart(self) -> PostgresStore:
        """See `ports.store.ApartStore`."""
        return PostgresStore(self._url, self._engine, self._clock, apart=True)

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._writers, self._transact, fn)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, fn)

    async def close(self) -> None:
        """Finish what was asked before, then let go of the connections."""
        if self._closed:
            return
        self._closed = True
        for threads in (self._writers, self._readers):
            await asyncio.to_thread(threads.shutdown)
        if not self._apart:
            self._engine.dispose()

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("store-closed", "the store is closed")

    def _transact(self, fn: Callable[[Transaction], T]) -> T:
        try:
            with self._turns.together():
                return self._try(fn, _BEGIN_WRITE)
        except _Again:
            pass
        for retry in range(RETRIES):
            time.sleep(random.uniform(0, min(_PAUSE_S * 2**retry, _LONGEST_PAUSE_S)))  # noqa: S311 - jitter
            try:
                with self._turns.alone():
                    return self._try(fn, *self._begin_retry)
            except _Again:
                pass
        raise UnavailableError(
            "store-busy",
            "the change met others in the database again and again; nothing of it was stored",
            resolution="Try again.",
        )

    def _try(self, fn: Callable[[Transaction], T], *begin: str) -> T:
        began = time.monotonic()
        with self._connection(*begin) as connection:
            scope = _Scope(connection, writable=True)
            try:
                result = call(fn, SqlTransaction(scope, lambda: self._now(scope)))
            except (DBAPIError, psycopg.Error):
                raise
            except Exception:
                if scope.spoilt:
                    raise _Again from None
                raise
            finally:
                scope.open = False
            if scope.spoilt:
                raise _Again
            if time.monotonic() - began > IDLE_TIMEOUT_S / 2:
                connection.exec_driver_sql(
                    "SELECT 1"
                )  # a connection that was ended meanwhile is not found by the COMMIT
            self._commit(connection)
        return result

    def _commit(self, connection: sa.Connection) -> None:
        try:
            connection.exec_driver_sql("COMMIT")
        except DBAPIError:
            if not _is_lost(connection):
                raise
            reason = "was lost while it stored a change, which may be there or not"
            raise UnavailableError(
                "commit-unknown",
                f"the connection to the database {self._url} {reason}",
                resolution="Look whether it is there before you try again. With an idempotency key, repeat the request.",
            ) from None

    def _read(self, fn: Callable[[Transaction], T]) -> T:
        try:
            return self._look(fn)
        except _Again:  # an idle connection that the database had closed
            pass
        try:
            return self._look(fn)
        except _Again:
            raise UnavailableError("store-unavailable", f"the database {self._url} does not answer") from None

    def _look(self, fn: Callable[[Transaction], T]) -> T:
        with self._connection(_BEGIN_READ) as connection:
            scope = _Scope(connection, writable=False)
            try:
                return call(fn, SqlTransaction(scope, lambda: self._now(scope)))
            finally:
                scope.open = False

    def _now(self, scope: _Scope) -> float:
        if self._clock is not None:
            return self._clock.now()
        return float(scope.read().exec_driver_sql(_NOW).scalar_one())

    @contextmanager
    def _connection(self, *begin: str) -> Iterator[sa.Connection]:
        """A connection with a transaction, which is rolled back unless it was committed.

        Raises:
            _Again: it was ended by the database, or with its connection, and left nothing.
            UnavailableError: the database does not answer.
        """
        lost = False
        try:
            with self._engine.connect() as connection:
                try:
                    for statement in begin:
                        connection.exec_driver_sql(statement)
                    yield connection
                finally:
                    lost = not _end(connection)
        except (DBAPIError, psycopg.Error) as error:
            if lost or _sqlstate(error) in _MET_ANOTHER:
                raise _Again from None
            if _is_outage(error):
                raise _unavailable(self._url, error) from None
            raise _defect(self._url, error) from None


def _is_lost(connection: sa.Connection) -> bool:
    return connection.invalidated or bool(getattr(connection.connection.driver_connection, "closed", True))


def _end(connection: sa.Connection) -> bool:
    """Roll back what was not committed; False where the connection is lost, which it then never gives again."""
    try:
        if not _is_lost(connection):
            driver: Any = connection.connection.driver_connection
            if driver.info.transaction_status != TransactionStatus.IDLE:
                driver.execute("ROLLBACK")
            return True
    except psycopg.Error:
        pass
    if not connection.invalidated:
        connection.invalidate()
    return False


def _defect(url: PostgresUrl, error: DBAPIError | psycopg.Error) -> RuntimeError:
    """Ours, or of the schema. Only the brief words of the database are told: its details may hold a row."""
    cause = _cause(error)
    brief = getattr(getattr(cause, "diag", None), "message_primary", None) or type(cause).__name__
    return RuntimeError(f"the database refused a statement: {_sqlstate(error)} {url.redact(brief)}")
