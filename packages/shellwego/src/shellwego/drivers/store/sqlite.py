"""SQLite: one writer thread with group commit, and readers on snapshots, the short ones where they are asked for.

Measured here: many connections that compete for SQLite's one write lock give long tails (0.8 s), because they back off
blindly. So all writes go through one thread. While it waits for the disk, others queue up; it then runs them all in one
transaction, each inside its own savepoint, and pays one fsync for all. A function that fails undoes only itself. Nobody is
told of success before the COMMIT returned, and with it the fsync (`synchronous=FULL`).

Trap: after some errors (disk full, I/O) SQLite rolls the whole transaction back by itself, the neighbours in the batch
included. Then the whole batch fails with `UnavailableError`, and each may be tried again.

Most reads find a few rows by their keys. SQLite takes some ten microseconds for that; a thread takes ten times that to be
asked and to answer, because threads take turns in the interpreter. So a read is first tried in the event loop, on a
connection that gives up early: after so many statements, rows, or steps of SQLite's machine, or where it would have
to wait for a lock. What gave up runs again in a thread, on a snapshot of its own.

The connection is in the driver's autocommit mode, so that BEGIN, SAVEPOINT and COMMIT are exactly those written here. It
is the standard library's: SQLAlchemy writes the statements (`sqlite_plans`) and sees nothing of what is asked and answered.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from shellwego.core.errors import UnavailableError
from shellwego.drivers.store.migrate import check_schema, upgrade
from shellwego.drivers.store.sql import Scope, SqlTransaction, call, refusal
from shellwego.drivers.store.sqlite_plans import PLANS_KEPT, plan, question
from shellwego.ports.clock import Clock
from shellwego.ports.store import Transaction

T = TypeVar("T")

MAX_BATCH = 256
READERS = 4
BUSY_MS = 5000
NEAR_STATEMENTS, NEAR_ROWS = 12, 24
"""What a read in the event loop may ask and find."""
NEAR_TICKS, TICK = 14, 1000
"""What it may cost, and in how many instructions of SQLite's machine each: less than a millisecond. SQLite counts a tick on
from where a statement ended when it was last used, so each statement may bring one that is not this read's."""


def open_sqlite(path: Path, clock: Clock) -> SqliteStore:
    """Open the database, made or migrated where needed. The file is for its owner only: it holds apps' environments.

    Raises:
        UnavailableError: it cannot be opened, or is no database.
        ConflictError: a newer version of the platform wrote it, or a development version with another schema.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        upgrade(path)
        check_schema(path)
    except OSError as error:
        raise UnavailableError("store-unavailable", f"cannot open {path}: {error.strerror}") from error
    except DBAPIError as error:
        raise _unavailable(error.orig or error, f"the database {path}") from error
    except sqlite3.Error as error:
        raise _unavailable(error, f"the database {path}") from error
    return SqliteStore(path, clock)


class Connection(sqlite3.Connection):
    """To the database, as the store uses it; tests watch what it is asked."""

    ticks = 0
    """How many are left to a read in the event loop."""

    def tick(self) -> bool:
        """Whether it is to give up."""
        self.ticks -= 1
        return self.ticks < 0


def _connect(path: Path) -> Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=PLANS_KEPT, factory=Connection
    )
    connection.create_function("lower", 1, str.lower, deterministic=True)  # SQLite's own knows ASCII only
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_MS}", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


class _TooLong(Exception):
    """A read that is not for the event loop."""


class _Scope(Scope[Connection]):
    def rows(self, statement: sa.Select[Any], values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        found = question(statement, values)
        return self.read().execute(found.sql, found.values(values)).fetchall()

    def change(self, table: sa.Table, statement: sa.Insert | sa.Update | sa.Delete, values: Mapping[str, Any]) -> int:
        found = plan(statement)
        try:
            return self.write().execute(found.sql, found.values(values)).rowcount
        except sqlite3.IntegrityError as error:
            raise refusal(table, _violated_key(table, error)) from None  # the error's text may hold the row


class _NearScope(_Scope):
    """A read in the event loop."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, writable=False)
        self._statements, self._rows = NEAR_STATEMENTS, NEAR_ROWS

    def rows(self, statement: sa.Select[Any], values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        found = question(statement, values)
        rows = self.read().execute(found.sql, found.values(values)).fetchmany(self._rows + 1)
        self._statements -= 1
        self._rows -= len(rows)
        if self._rows < 0 or self._statements < 0:
            raise _TooLong
        return rows


def _violated_key(table: sa.Table, error: sqlite3.IntegrityError) -> list[str] | None:
    """`UNIQUE constraint failed: apps.project_id, apps.name` → the fields."""
    fault, _, columns = str(error).partition(": ")
    if fault != "UNIQUE constraint failed":
        return None
    return [column.removeprefix(f"{table.name}.") for column in columns.split(", ")]


def _unavailable(error: BaseException, what: str = "the database") -> UnavailableError:
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
        return UnavailableError(
            "disk-full", "the disk of the platform's database is full", resolution="Free space; nothing was lost."
        )
    return UnavailableError("store-unavailable", f"{what} does not answer: {error}")


def _is_outage(error: BaseException) -> bool:
    """The database's trouble, not the caller's: no space, I/O error, locked by another process, corrupt."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


@dataclass(slots=True, eq=False)
class _Job:
    """One `transact` on its way through the writer."""

    fn: Callable[[Transaction], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def deliver(self) -> None:
        """Tell the caller; runs in its event loop."""
        if self.future.done():  # the caller was cancelled
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


def _deliver(jobs: list[_Job]) -> None:
    for job in jobs:
        job.deliver()


@dataclass(slots=True)
class _Writer:
    """The thread that writes."""

    connection: Connection
    clock: Clock
    jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)

    def run(self) -> None:
        """Work until None arrives."""
        ended = False
        while not ended:
            batch: list[_Job] = []
            job = self.jobs.get()
            while job is not None:
                batch.append(job)
                if len(batch) == MAX_BATCH or self.jobs.empty():
                    break
                job = self.jobs.get_nowait()
            ended = job is None
            self._commit(batch)
        self.connection.close()

    def _commit(self, batch: list[_Job]) -> None:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._run(job)
            self.connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - this thread must outlive everything, or all callers hang
            self._undo_all()
            for job in batch:
                job.error = _unavailable(error)
        for loop in {job.loop for job in batch}:
            own = [job for job in batch if job.loop is loop]
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, own)

    def _run(self, job: _Job) -> None:
        """Run one function within its savepoint.

        Raises:
            sqlite3.DatabaseError: the database fails; SQLite may have rolled all back.
        """
        self.connection.execute("SAVEPOINT job")
        scope = _Scope(self.connection, writable=True)
        try:
            job.result = call(job.fn, SqlTransaction(scope, self.clock.now))
        except BaseException as error:
            if _is_outage(error):
                raise
            job.error = error
            self.connection.execute("ROLLBACK TO job")
        finally:
            scope.open = False
        self.connection.execute("RELEASE job")

    def _undo_all(self) -> None:
        if self.connection.in_transaction:
            with suppress(sqlite3.Error):  # then BEGIN fails, and it is tried again
                self.connection.execute("ROLLBACK")


class SqliteStore:
    """See `ports.store.Store`; made by `open_sqlite`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._path = path
        self._writer = _Writer(_connect(path), clock)
        self._thread = threading.Thread(target=self._writer.run, name="store-writer", daemon=True)
        self._thread.start()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._idle: list[Connection] = []
        self._near: list[Connection] = []
        self._closed = False

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        self._check_open()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._writer.jobs.put(_Job(fn, loop, future))
        return await future

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        self._check_open()
        try:
            return self._read_here(fn)
        except (_TooLong, sqlite3.DatabaseError):  # where it is no accident it is met again there, and told
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, fn)

    async def close(self) -> None:
        """Finish what was asked before, then let go of the files."""
        if self._closed:
            return
        self._closed = True
        self._writer.jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in (*self._idle, *self._near):
            connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("store-closed", "the store is closed")

    def _read_here(self, fn: Callable[[Transaction], T]) -> T:
        """Read in this thread, and not for long.

        Raises:
            _TooLong, sqlite3.DatabaseError: nothing came of it.
        """
        with self._snapshot(self._near, self._open_near) as connection:
            return self._look(fn, _NearScope(connection))

    def _read(self, fn: Callable[[Transaction], T]) -> T:
        try:
            with self._snapshot(self._idle, self._open_reader) as connection:
                return self._look(fn, _Scope(connection, writable=False))
        except sqlite3.Error as error:
            if _is_outage(error):
                raise _unavailable(error) from error
            raise

    def _look(self, fn: Callable[[Transaction], T], scope: _Scope) -> T:
        try:
            return call(fn, SqlTransaction(scope, self._clock.now))
        finally:
            scope.open = False

    @contextmanager
    def _snapshot(self, idle: list[Connection], open_one: Callable[[], Connection]) -> Iterator[Connection]:
        """A connection that sees one moment (WAL) and cannot write."""
        try:
            connection = idle.pop()
        except IndexError:
            connection = open_one()
        connection.ticks = NEAR_TICKS
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.ticks = NEAR_TICKS
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            idle.append(connection)

    def _open_reader(self) -> Connection:
        connection = _connect(self._path)
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _open_near(self) -> Connection:
        connection = self._open_reader()
        connection.execute("PRAGMA busy_timeout=0")
        connection.set_progress_handler(connection.tick, TICK)
        return connection
