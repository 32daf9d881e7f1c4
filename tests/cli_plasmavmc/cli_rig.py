"""The command line as a newcomer meets it: in this process by click's runner, or as a process of its own, against a real
gRPC server over an engine on memory parts, which runs in a thread."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from click.testing import CliRunner, Result

from plasmavmc.guest.api import GuestConfig, GuestFailed
from plasmavmc.guest.memory import MemoryGuest, Script
from plasmavmc.hypervisor.memory import PretendedVmms
from plasmavmc.types import LogStream, Scope
from tests.engine.engine_rig import EngineRig
from tests.rpc.rpc_rig import RpcRig, running, system_image

T = TypeVar("T")
PROGRAM = Path(sys.executable).with_name("plasmavmc")
PROJECT = Scope("default", "default")
DEADLINE_S = 30.0


def script(config: GuestConfig) -> Script:
    """`exit N`, `echo` (writes what it reads), `deaf` (to signals), `missing`, `locked`; all else runs until stopped."""
    hello = ((LogStream.STDOUT, b"hello\n"), (LogStream.STDERR, b"careful\n"))
    match config.argv[1:]:
        case ("exit", code):
            return Script(output=hello, exit_code=int(code))
        case ("deaf",):
            return Script(output=hello, deaf=True)
        case ("echo",):
            return Script(echoes=True)
        case ("missing",):
            return Script(failure=GuestFailed("no-such-command", "missing was not found in the image"))
        case ("locked",):
            return Script(failure=GuestFailed("not-executable", "cannot execute locked: Permission denied"))
        case _:
            return Script(output=hello, stop_code=143)


@dataclass
class CliRig:
    """A server in a thread, and commands."""

    rpc: RpcRig
    loop: asyncio.AbstractEventLoop
    guests: list[MemoryGuest] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"PLASMAVMC_SERVER": self.rpc.address}

    def call(self, *words: str, stdin: bytes = b"", **environment: str) -> Result:
        """In a process of its own: commands take over signals, stdin and stdout as such."""
        done = subprocess.run(
            [PROGRAM, *words],
            input=stdin,
            capture_output=True,
            env={**os.environ, **self.environment, **environment},
            timeout=DEADLINE_S,
            check=False,
        )
        return Result(CliRunner(), done.stdout, done.stderr, done.stdout + done.stderr, None, done.returncode, None)

    def start(self, *words: str, **more: object) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen([PROGRAM, *words], env={**os.environ, **self.environment}, **pipes)  # type: ignore[call-overload, no-any-return]

    def well(self, *words: str, stdin: bytes = b"") -> str:
        done = self.call(*words, stdin=stdin)
        assert done.exit_code == 0, done.stderr
        return done.stdout.strip()

    def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something in the server's loop."""

        async def wrapped() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(DEADLINE_S)

    def guest(self) -> MemoryGuest:
        """The last VM's."""
        return self.guests[-1]


@asynccontextmanager
async def _server(directory: Path, guests: list[MemoryGuest]) -> AsyncIterator[RpcRig]:
    def new_guest(_spec: object) -> MemoryGuest:
        guests.append(MemoryGuest(script))
        return guests[-1]

    engine = EngineRig(directory, vmms=PretendedVmms(new_guest))
    async with running(engine=engine) as rpc:
        rpc.catalogue.add(system_image(engine, PROJECT), "app:latest")
        yield rpc


@contextmanager
def served(directory: Path) -> Iterator[CliRig]:
    """A server in a thread, until the block ends."""
    made: list[CliRig] = []
    begun, end = threading.Event(), threading.Event()

    async def serve() -> None:
        guests: list[MemoryGuest] = []
        async with _server(directory, guests) as rpc:
            made.append(CliRig(rpc, asyncio.get_running_loop(), guests))
            begun.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert begun.wait(DEADLINE_S)
        yield made[0]
    finally:
        end.set()
        thread.join(DEADLINE_S)
