"""Processes that die by SIGKILL at a given step of a request, on a real database; run by `test_crash_points`.

    python -m tests.control.crash_worker DATABASE [all]    (a path or a URL; prints a JSON list, a point of death each)

Without `all`, of several steps of one kind only the last is one.

Each point has a request of its own: POST of an app, with an idempotency key. A process makes it and dies at its step. Then
what is stored is looked at, and another process asks again with the same key, as a client would that got no answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from fastapi import FastAPI

from shellwego.api.rest.app import create_app
from shellwego.control.identity import make_identity
from shellwego.control.imagework import ImageWork
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.images.memory import MemoryImages
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.passwords.memory import MemoryHasher
from shellwego.drivers.store.location import parse_url
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.ports.store import Store, Transaction, eq
from tests.api.api_world import OWNER, call_asgi, make_world
from tests.contract.sqlite_statements import Watch
from tests.contract.sqlite_statements import watched as sqlite_watched
from tests.contract.store_databases import Database

T = TypeVar("T")
AUTHORIZATION = {"authorization": f"Bearer {OWNER}"}
BEGINS = ("BEGIN IMMEDIATE", "BEGIN ISOLATION LEVEL SERIALIZABLE")


def database(text: str) -> Database:
    return Database(parse_url(text) if "://" in text else Path(text))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Steps:
    """Counts the steps of a write from its BEGIN on, and dies before the one that is asked for."""

    def __init__(self, deadly: int = 1 << 30) -> None:
        self.deadly = deadly
        self.names: list[str] = []
        self.armed = False
        self.writing = False

    def step(self, name: str) -> None:
        if len(self.names) == self.deadly:
            die()
        self.names.append(name)

    def before(self, statement: str) -> None:
        self.writing = self.armed and (self.writing or statement.startswith(BEGINS))
        if self.writing:
            self.step(statement.split(maxsplit=1)[0])

    def after(self, statement: str) -> None:
        if self.writing and statement == "COMMIT":
            self.step("committed")
            self.writing = False


class CountedBus(MemoryBus):
    """Whose hints are steps too."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        if self._steps.armed:
            self._steps.step("hint")
        await super().publish(subject, payload)
        if self._steps.armed:
            self._steps.step("hinted")


async def seed(place: str) -> None:
    """Tenants and users."""
    found = database(place)
    with tempfile.TemporaryDirectory() as spool:
        await make_world(Path(spool), clock=SystemClock(), store=found.open())
    await found.close()


async def post(app: FastAPI, name: str) -> int:
    body = json.dumps({"name": name}).encode()
    headers = {
        **AUTHORIZATION,
        "idempotency-key": name,
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    return (await call_asgi(app, "POST", "/v1/apps", headers=headers, content=body)).status


def stored(tx: Transaction, name: str) -> dict[str, int]:
    """How often each thing is there that the request makes."""
    (app,) = [app.id for app in tx.apps.select() if app.name == name] or [""]
    kinds = Counter(event.type for event in tx.events.select() if app and event.resource == app)
    unaudited = tx.apps.count() - tx.audit.count(eq("action", "apps:write"))
    return {"app": int(bool(app)), "events": kinds["app.created"], "unaudited": unaudited}


def in_a_process(work: Callable[[], object]) -> tuple[int, Any]:
    """Run it in a child; returns how that ended, and what the work gave."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.write(writing, json.dumps(work()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


class LateStore:
    """A store that is opened after the fork: making the application takes longer than all else."""

    opened: Store

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        return await self.opened.transact(fn)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return await self.opened.read(fn)

    async def close(self) -> None:
        await self.opened.close()


@dataclass(slots=True)
class Server:
    """One that is started anew for each request."""

    place: str
    spool: Path
    steps: Steps = field(default_factory=Steps)
    store: LateStore = field(default_factory=LateStore)
    app: FastAPI = field(init=False)

    def __post_init__(self) -> None:
        control = Control(self.store, CountedBus(self.steps), SystemClock())
        sealer = Sealer(control, MemoryKms())
        self.app = create_app(
            control,
            identity=make_identity(control, MemoryHasher(), sealer),
            sealer=sealer,
            images=ImageWork(MemoryImages(SystemClock().now), SystemClock()),
            streams=MemoryStreams(),
            version="0",
            spool_dir=self.spool,
            http_port=8080,
        )

    def serve(self, name: str, deadly: int = 1 << 30) -> tuple[int, Any]:
        """One request in a process of its own; returns how that ended, and what is stored of it before and after."""
        self.steps.deadly = deadly
        return in_a_process(lambda: asyncio.run(self._serve(name)))

    async def _serve(self, name: str) -> dict[str, Any]:
        found = database(self.place)
        self.store.opened = found.open()
        before = await self.store.read(lambda tx: stored(tx, name))
        await call_asgi(self.app, "GET", "/v1/apps", headers=AUTHORIZATION)  # that the token was used is noted here
        self.steps.armed = True
        status = await post(self.app, name)
        self.steps.armed = False
        after = await self.store.read(lambda tx: stored(tx, name))
        await found.close()
        return {"status": status, "before": before, "after": after, "steps": self.steps.names}


def main(place: str, *, each: bool) -> None:
    in_a_process(lambda: asyncio.run(seed(place)))
    with tempfile.TemporaryDirectory() as spool:
        server = Server(place, Path(spool))
        with watched(server.steps.before, server.steps.after):
            points = die_at_each(server, each=each)
    print(json.dumps(points))


@contextmanager
def watched(before: Watch, after: Watch) -> Iterator[None]:
    """The statements of whichever database, for good."""
    sa.event.listen(sa.Engine, "before_cursor_execute", lambda *context: before(context[2]))
    sa.event.listen(sa.Engine, "after_cursor_execute", lambda *context: after(context[2]))
    with sqlite_watched(before, after):
        yield


def die_at_each(server: Server, *, each: bool) -> list[dict[str, Any]]:
    """The points of death."""
    points = []
    _, whole = server.serve("whole")
    steps = [*whole["steps"], "end"]
    for number, step in enumerate(steps):
        if not each and step in steps[number + 1 :]:
            continue
        name = f"app-{number}"
        ended, _ = server.serve(name, deadly=number)
        code, again = server.serve(name)
        assert code == 0
        points.append({**again, "dies_before": step, "ended": ended})
    return points


if __name__ == "__main__":
    main(sys.argv[1], each=sys.argv[2:] == ["all"])
