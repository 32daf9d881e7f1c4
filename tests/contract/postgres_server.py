"""A PostgreSQL server of the tests' own: the distribution's programs, an unprivileged user, a unix socket and a private
directory; durable as in production.

Making a database and its schema takes a second. So most tests share one, which is emptied before each; those of the schema
itself have one of their own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql

from shellwego.drivers.store.location import PostgresUrl, parse_url
from shellwego.drivers.store.migrate import upgrade
from shellwego.drivers.store.schema import TABLES

USER = "postgres"
_START_S = 60


def programs() -> Path:
    """The newest PostgreSQL that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    assert found, "PostgreSQL is not installed; scripts/setup does that"
    return found[-1].parent


@dataclass(slots=True)
class PostgresServer:
    """A running server; its socket lies in `directory`."""

    directory: Path
    address: str = ""
    """Where it listens beside, for everybody of that network."""
    namespace: int = 0
    """The pid of somebody whose network it is in; 0: that of the tests."""
    process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=count)
    _shared: PostgresUrl | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def url(self, database: str = "postgres", *, user: str = USER, password: str = "") -> str:
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@/{database}?host={self.directory}"

    def new_database(self) -> PostgresUrl:
        """An empty database."""
        name = f"test_{next(self._numbers)}"
        self.sql(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return parse_url(self.url(name))

    def emptied_database(self) -> PostgresUrl:
        """The shared database with this code's schema and no rows. Whoever used it before has closed it."""
        if self._shared is None:
            self._shared = self.new_database()
            upgrade(self._shared)
        deletes = sql.SQL("; ").join(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)) for table in TABLES)
        self.sql(deletes, self._shared.name)
        return self._shared

    def sql(self, statement: sql.Composed | sql.SQL, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the administrator."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Returns when it answers."""
        settings = (
            f"listen_addresses={self.address}",
            f"unix_socket_directories={self.directory}",
            "max_connections=200",
            "shared_buffers=64MB",
        )
        command = [programs() / "postgres", "-D", self.data, *(word for each in settings for word in ("-c", each))]
        with (self.directory / "log").open("ab") as log:
            self.process = self._begin(command, log)
        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url()).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()[-2000:]
                time.sleep(0.02)
            else:
                return

    def _begin(self, command: list[str | Path], log: IO[bytes]) -> subprocess.Popen[bytes]:
        if not self.namespace:
            return subprocess.Popen(command, stdout=log, stderr=log, **_unprivileged())  # type: ignore[call-overload,no-any-return]
        entry = pwd.getpwnam(USER)
        enter = [
            "nsenter",
            f"--net=/proc/{self.namespace}/ns/net",
            f"--setuid={entry.pw_uid}",
            f"--setgid={entry.pw_gid}",
        ]
        return subprocess.Popen([*enter, *command], stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        """To all its processes."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in (self.process.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: end all connections and stop; SIGQUIT: as if it had crashed."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(_START_S)
            self.process = None


def _unprivileged() -> dict[str, object]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}


@contextmanager
def running_postgres(address: str = "", *, namespace: int = 0, lets_in: str = "samenet") -> Iterator[PostgresServer]:
    """A server from its making to its end; see `PostgresServer`. `lets_in`: whom by that address, in the words of its own
    rules."""
    directory = Path(tempfile.mkdtemp(prefix="swg-pg-", dir="/tmp"))
    server = PostgresServer(directory, address, namespace)
    directory.chmod(0o755)  # others connect to its socket; its data are its own
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, USER, USER)
        making = [programs() / "initdb", "-D", server.data, "-U", USER, "--locale=C.UTF-8", "-E", "UTF8", "--no-sync"]
        subprocess.run([*making, "-A", "trust"], check=True, capture_output=True, cwd="/", **_unprivileged())  # type: ignore[call-overload]
        if address:
            with (server.data / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {lets_in} trust\n")
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(directory, ignore_errors=True)
