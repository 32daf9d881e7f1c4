"""A HAProxy in memory with the face of `edge.haproxy.Haproxy`: it reads the real files, and can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from shellwego.edge.haproxy import HaproxyError
from shellwego.edge.pool import (
    AddServer,
    DeleteServer,
    DropHost,
    Key,
    Operation,
    Pool,
    Server,
    ServerState,
    SetState,
    TurnHost,
    apply,
)
from shellwego.edge.routes import LastRoutes
from shellwego.edge.runtime import Processes, RuntimeApiError


def pool_of(files: Mapping[Path, str]) -> Pool:
    """What a worker that reads these files holds."""
    by_name = {path.name: text for path, text in files.items()}
    pool, backend = Pool(0), ""
    for line in by_name["haproxy.cfg"].splitlines():
        words = line.split()
        if words[:1] == ["backend"]:
            backend = words[1]
            pool.size += backend.startswith("swg_b")
        elif words[:1] == ["server"] and backend.startswith("swg_b"):
            pool.servers[backend, words[1]] = Server(words[2], int(words[4]), ServerState.READY)
    pool.hosts = _map(by_name["hosts.map"])
    pool.pages = _map(by_name["pages.map"])
    return pool


def _map(text: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in text.splitlines()}


def description(files: Mapping[Path, str]) -> str:
    return next(
        line.split()[1]
        for path, text in files.items()
        if path.name == "haproxy.cfg"
        for line in text.splitlines()
        if line.split()[:1] == ["description"]
    )


class FakeWorker:
    """The current worker's runtime API; refuses what HAProxy refuses."""

    def __init__(self) -> None:
        self.number = 100
        self.held = Pool(0)
        self.version = ""
        self.silent = False
        self.refuses: set[type[Operation]] = set()
        self.loses_answers = 0
        self.done: list[Operation] = []
        self.looks = 0

    async def pid(self) -> int:
        self._answer()
        return self.number

    async def config_version(self) -> str:
        self._answer()
        return self.version

    async def pool(self) -> Pool:
        self._answer()
        self.looks += 1
        return Pool(self.held.size, dict(self.held.servers), dict(self.held.hosts), dict(self.held.pages))

    async def connections(self, backends: set[str]) -> dict[Key, int]:
        self._answer()
        return {key: server.connections for key, server in self.held.servers.items() if key[0] in backends}

    async def execute(self, operations: Sequence[Operation]) -> list[str]:
        self._answer()
        answers = [self._do(operation) for operation in operations]
        if operations and self.loses_answers:
            self.loses_answers -= 1
            raise RuntimeApiError("the answer was lost")
        return answers

    def _do(self, operation: Operation) -> str:
        if type(operation) in self.refuses:
            return "refused"
        match operation:
            case AddServer(key) if key in self.held.servers:
                return "Already exists a server with the same name in backend."
            case DeleteServer(key) if self.held.servers[key].connections:
                return "Server still has connections attached to it, cannot remove it."
            case SetState(key) if key not in self.held.servers:
                return "No such server."
            case TurnHost(host, _, previous) if self.held.hosts.get(host) != previous:
                return "entry not found."
            case DropHost(host) if host not in self.held.hosts:
                return "Key not found."
            case _:
                apply(self.held, operation)
                self.done.append(operation)
                return ""

    def _answer(self) -> None:
        if self.silent:
            raise RuntimeApiError("no answer")


class FakeMaster:
    """The master: `old` workers by pid, with the connections they still have."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker
        self.old: dict[int, dict[Key, int]] = {}
        self.retired: set[int] = set()
        self.cannot_retire = False

    async def processes(self) -> Processes:
        if self._worker.silent:
            raise RuntimeApiError("no answer")
        return Processes(self._worker.number, tuple(self.old), 0)

    async def retire(self, pid: int) -> None:
        if self.cannot_retire:
            raise RuntimeApiError("it did not take it")
        self.retired.add(pid)

    async def connections(self, pid: int) -> dict[Key, int]:
        return self.old[pid]


class FakeHaproxy:
    """Driven as the real one."""

    def __init__(self) -> None:
        self.worker = FakeWorker()
        self.master = FakeMaster(self.worker)
        self.runs = False
        self.starts = 0
        self.reloads = 0
        self.reloads_tried = 0
        self.refuses_start = 0
        self.refuses_reload = False
        self._ended = asyncio.Event()

    @property
    def alive(self) -> bool:
        return self.runs

    async def wait_ended(self) -> None:
        await self._ended.wait()

    async def adopt(self) -> bool:
        return self.runs

    async def start(self, files: Mapping[Path, str]) -> None:
        if self.refuses_start:
            self.refuses_start -= 1
            raise HaproxyError("edge-haproxy", "it does not start")
        self.starts += 1
        self.runs, self.worker.silent = True, False
        self._ended.clear()
        self._load(files)

    async def reload(self, files: Mapping[Path, str]) -> None:
        self.reloads_tried += 1
        if self.refuses_reload:
            raise HaproxyError("edge-haproxy", "the new worker did not come up")
        self.reloads += 1
        self.master.old[self.worker.number] = {
            key: server.connections for key, server in self.worker.held.servers.items() if server.connections
        }
        self._load(files)

    async def kill(self) -> None:
        self.runs = False
        self._ended.set()

    def _load(self, files: Mapping[Path, str]) -> None:
        self.worker.number += 1
        self.worker.held = pool_of(files)
        self.worker.version = description(files)


class MemoryRoutes:
    """`edge.routes.RoutesFile` without a disk."""

    def __init__(self) -> None:
        self.last: LastRoutes | None = None
        self.full = False

    async def load(self) -> LastRoutes | None:
        return self.last

    async def save(self, last: LastRoutes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.last = last
