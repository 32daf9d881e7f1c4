"""The two sides of P9, each a process of its own: our API, and a bare Starlette route that runs the same statements.

    python -m bench.p9_server ours DATABASE [RECORD]      (RECORD: a file for each statement that is run, a JSON line each)
    python -m bench.p9_server bare DATABASE STATEMENTS    (a JSON file: "read", "write": statements with their values)

Prints the port that it listens on. Both run on the same HTTP server and the same SQLite, with the same durability: writes
are committed together by one thread, each told after the fsync.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import socket
import sqlite3
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shellwego.api.rest.app import create_app
from shellwego.control.bootstrap import bootstrap
from shellwego.control.identity import make_identity
from shellwego.control.imagework import ImageWork
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.images.memory import MemoryImages
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.passwords.memory import MemoryHasher
from shellwego.drivers.store.sqlite import Connection, open_sqlite
from shellwego.drivers.streams.memory import MemoryStreams

TOKEN = f"pat_{'A' * 43}"
READERS = 4
_OWN_ID = re.compile(r"(app|evt|aud)_[0-9a-z]{26}")
_CONTROL = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "ROLLBACK", "PRAGMA")

Statement = tuple[str, list[Any]]


def config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off", http="httptools")


async def serve(app: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    await uvicorn.Server(config(app)).serve([listener])


async def ours(path: Path, record: Path | None) -> None:
    clock = SystemClock()
    store = open_sqlite(path, clock)
    control = Control(store, MemoryBus(), clock)
    await control.commit(lambda unit: bootstrap(unit, TOKEN))
    with tempfile.TemporaryDirectory() as spool:
        sealer = Sealer(control, MemoryKms())
        app = create_app(
            control,
            identity=make_identity(control, MemoryHasher(), sealer),
            sealer=sealer,
            images=ImageWork(MemoryImages(clock.now), clock),
            streams=MemoryStreams(),
            version="0",
            spool_dir=Path(spool),
            http_port=8080,
        )
        if record:
            note_statements(record)
        await serve(app)


def note_statements(record: Path) -> None:
    lock = threading.Lock()

    def execute(self: Connection, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        if not statement.startswith(_CONTROL):
            with lock, record.open("a") as file:
                file.write(json.dumps([statement, list(parameters)]) + "\n")
        return sqlite3.Connection.execute(self, statement, parameters)

    Connection.execute = execute  # type: ignore[method-assign, assignment]


class Bare:
    """Routes that run recorded statements, and answer with a recorded body."""

    def __init__(self, path: Path, recorded: dict[str, Any]) -> None:
        self._path = path
        self._read: list[Statement] = recorded["read"]
        self._write: list[Statement] = recorded["write"]
        self._name: str = recorded["name"]
        self._body = recorded["body"].encode()
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(READERS)
        self._jobs: queue.SimpleQueue[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = queue.SimpleQueue()
        self._number = 1_000_000
        threading.Thread(target=self._write_all, daemon=True).start()

    def app(self) -> Starlette:
        return Starlette(
            routes=[Route("/v1/apps/{app}", self.read), Route("/v1/apps", self.write, methods=["POST"])],
        )

    async def read(self, _request: Request) -> Response:
        await asyncio.get_running_loop().run_in_executor(self._readers, self._look)
        return Response(self._body, media_type="application/json")

    async def write(self, request: Request) -> Response:
        await request.body()
        self._number += 1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._jobs.put((self._number, loop, done))
        await done
        return Response(self._body, status_code=201, media_type="application/json")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _look(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        connection.execute("BEGIN")
        for statement, values in self._read:
            connection.execute(statement, values).fetchall()
        connection.execute("ROLLBACK")

    def _write_all(self) -> None:
        connection = self._connect()
        while True:
            jobs = [self._jobs.get()]
            while len(jobs) < 256 and not self._jobs.empty():
                jobs.append(self._jobs.get_nowait())
            connection.execute("BEGIN IMMEDIATE")
            for number, _, _ in jobs:
                for statement, values in self._write:
                    connection.execute(statement, self._own(values, number)).fetchall()
            connection.execute("COMMIT")
            for _, loop, done in jobs:
                loop.call_soon_threadsafe(done.set_result, None)

    def _own(self, values: list[Any], number: int) -> list[Any]:
        """The recorded values, for another app."""
        return [self._own_text(value, number) if isinstance(value, str) else value for value in values]

    def _own_text(self, text: str, number: int) -> str:
        if _OWN_ID.fullmatch(text):
            return f"{text[:4]}{number:026}"
        return text.replace(self._name, f"bare-{number}")


def main() -> None:
    side, path, *rest = sys.argv[1:]
    if side == "ours":
        uvloop.run(ours(Path(path), Path(rest[0]) if rest else None))
    else:
        uvloop.run(serve(Bare(Path(path), json.loads(Path(rest[0]).read_text())).app()))


if __name__ == "__main__":
    main()
