"""How every process of the platform runs: its parts together, until one ends or the end is asked for.

Theory. A half-running process is worse than one that a supervisor restarts: so a part that ends by itself takes the others
down. What runs VMs or requests lives on, and the next start adopts it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import structlog
import uvloop

from shellwego.boot.logs import log_to_stderr
from shellwego.core.errors import ShellWeGoError
from shellwego.drivers.engine.assembly import HostLink

_END_TRIES, _END_TRY_S = 3, 5.0
"""Parts get so many times so many seconds to end."""
_SWITCH_S = 0.001
"""After so long a thread gives the interpreter to one that asks for it. Those of the store have much to compute; by the
default, 5 ms, the event loop waits that long for each answer of theirs, and a cold start is a dozen of them."""

log = structlog.get_logger("shellwego.boot")

Part = Coroutine[Any, Any, None]


class Server(Protocol):
    """Serves an API from `run` until `stop`."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None: ...

    async def started(self) -> object: ...

    def stop(self) -> None: ...


def run_process(command: str, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. `command` is how people call it."""
    log_to_stderr()
    sys.setswitchinterval(_SWITCH_S)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work())
    except ShellWeGoError as error:
        print(f"{command}: {error.message}", file=sys.stderr)
        if error.resolution:
            print(f"  → {error.resolution}", file=sys.stderr)
        return 1


async def serve(
    parts: Mapping[str, Part],
    servers: Sequence[Server],
    ready: Part,
    stop: asyncio.Event,
    farewell: str,
    *,
    leave: Callable[[], Part] | None = None,
) -> int:
    """Run all parts and servers until the end is asked for (0, after `farewell`) or one of them ends by itself (1).

    `leave` is done before they end where that is asked for, while all of them go on.
    """
    running = {**parts, **{server.name: server.run() for server in servers}}
    tasks = {asyncio.create_task(part, name=name) for name, part in running.items()}
    asked = asyncio.create_task(stop.wait(), name="stop")
    telling = asyncio.create_task(ready, name="ready")
    done, _ = await asyncio.wait({*tasks, asked}, return_when=asyncio.FIRST_COMPLETED)
    if asked in done:
        print(farewell, file=sys.stderr)
        done |= await _left(leave, tasks)
    for server in servers:
        server.stop()
    await _end_all([*tasks, telling, asked])
    ended = [task for task in done if task is not asked]
    for task in ended:
        error = None if task.cancelled() else task.exception()
        log.error("platform.part_ended", part=task.get_name(), error=repr(error))
    return 1 if ended else 0


async def _left(leave: Callable[[], Part] | None, tasks: Collection[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Returns those of the tasks that ended in the meantime."""
    if leave is None:
        return set()
    leaving = asyncio.create_task(leave(), name="leave")
    done, _ = await asyncio.wait({*tasks, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    return done - {leaving}


def undo(link: HostLink) -> Callable[..., Coroutine[None, None, None]]:
    """After a start that failed, takes away what it made; the helper refuses that while VMs of an earlier life run."""

    async def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            await dismantle(link)

    return leave


async def dismantle(link: HostLink) -> None:
    """Take away what the host was given, and say so where it stays."""
    try:
        await link.dismantle()
    except ShellWeGoError as error:
        log.warning("host.not_dismantled", reason=error.message, code=error.code, resolution=error.resolution)


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait for their end; one that does not end is named, and left behind after a while."""
    for _ in range(_END_TRIES):
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=_END_TRY_S)
        if not tasks:
            return
        log.warning("platform.parts_linger", parts=sorted(task.get_name() for task in tasks))
