"""A module that serves HTTP: it is run once for each request, as `gateway` says, within its VM's worker.

Theory. The worker has no network. Requests come over a socket that listens outside of its cage, in the VM's directory, and
was handed in; so who may connect is who can reach that path: the platform. Each request gets an instance of its own, of the
code that is compiled already, with memory that no other request sees; `files` of the VM are common to all.

Bounds: a number of instances at once, each with its share of the VM's memory; requests that wait for one, and how long; the
time that a request may take, by which its instance is interrupted wherever it is (`engine`, `waits`). A module writes to a
pipe, so it is no faster than its client takes the answer, and where the client is gone, writing fails.

What a module does wrong is answered with 502 or 504, and told in the VM's log, where its stderr is.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import h11

from plasmavmc.deadlines import within
from plasmavmc.hypervisor.wasm.connection import Bodies, Body, Connection, Exchange
from plasmavmc.hypervisor.wasm.control import HTTP_BACKLOG
from plasmavmc.hypervisor.wasm.engine import INTERRUPTED, BadModuleError, Ended, Run
from plasmavmc.hypervisor.wasm.gateway import BadAnswerError, Head, find_head, parse_head, variables_of
from plasmavmc.hypervisor.wasm.guest import Guest, Told
from plasmavmc.hypervisor.wasm.job import NOT_TEXT, ROOT, Job
from plasmavmc.types import MIB, LogStream

MOST_AT_ONCE = 8
LEAST_SHARE_BYTES = 32 * MIB
MAX_WAITING = 128
WAIT_S = 10.0
REQUEST_S = 60.0
"""From the start of the module to the last byte of its answer. Waiting is not in it."""
MAX_CONNECTIONS = 1024
_LATER_S = 0.5
"""The module is interrupted so long after its client was told, so that it is told what happened."""
_THREAD_STACK_BYTES = 4 * MIB
_PIPE_READ = 64 * 1024
_OPEN_FILES = "/proc/self/fd"


def share_of(memory_bytes: int) -> tuple[int, int]:
    """How many instances there may be at once, and the memory of each."""
    count = max(1, min(MOST_AT_ONCE, memory_bytes // LEAST_SHARE_BYTES))
    return count, memory_bytes // count


@dataclass(frozen=True, slots=True)
class _Running:
    """A module that answers a request."""

    output: asyncio.StreamReader
    transport: asyncio.ReadTransport
    ended: asyncio.Future[Ended]


class Service:
    """Implements `guest.Workload`. Lives in the worker's event loop."""

    def __init__(self, guest: Guest, job: Job, *, request_s: float = REQUEST_S) -> None:
        self._guest = guest
        self._sandbox = job.sandbox
        self._job = job
        self._request_s = request_s
        self._loop = asyncio.get_running_loop()
        self._told = Told()
        count, self._share = share_of(job.assign.memory_bytes)
        self._slots = asyncio.Semaphore(count)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="module")
        self._waiting = 0
        self._bodies = Bodies()
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stderr = -1

    def configure(self, told: Told) -> None:
        self._told = told
        self._job.thread.submit(self._load)

    def stop(self, grace_s: float) -> None:
        """Take no more; answer what has come, as far as the grace goes."""
        self._begin(self._finish(grace_s))

    # Coming up

    def _load(self) -> None:
        try:
            self._job.prepare(self._told.files)
            self._sandbox.bound_waits()
            nowhere = Path(os.devnull)
            self._sandbox.try_out(self._run(self._told.env, nowhere, nowhere, None, lambda: None))
        except BadModuleError as error:
            self._fail(error.code, f"{error} (each request has {self._share // MIB} MiB)")
        except (OSError, MemoryError) as error:
            self._fail("bad-file", f"{type(error).__name__}: {error}")
        except UnicodeEncodeError:
            self._fail("bad-config", NOT_TEXT)
        else:
            self._loop.call_soon_threadsafe(lambda: self._begin(self._open()))

    def _fail(self, code: str, message: str) -> None:
        self._loop.call_soon_threadsafe(lambda: self._guest.failed(code, message))

    async def _open(self) -> None:
        threading.stack_size(_THREAD_STACK_BYTES)
        read_end, self._stderr = os.pipe2(os.O_CLOEXEC)
        log, _ = await self._reader_of(read_end)
        self._begin(self._drain_log(log))
        self._server = await asyncio.start_unix_server(self._accept, sock=self._job.listener(), backlog=HTTP_BACKLOG)
        self._guest.ready()

    async def _drain_log(self, log: asyncio.StreamReader) -> None:
        while data := await log.read(_PIPE_READ):
            self._guest.write(LogStream.STDERR, data)

    async def _reader_of(self, fd: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
        """Reads a pipe, and no faster than it is asked to; owns the descriptor."""
        reader = asyncio.StreamReader(limit=_PIPE_READ)
        pipe = os.fdopen(fd, "rb", buffering=0)
        transport, _ = await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return reader, transport

    # Going down

    async def _finish(self, grace_s: float) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.finish()
        if self._connections:
            await asyncio.wait(list(self._connections.values()), timeout=grace_s)
        self._threads.shutdown(wait=False)
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1
        self._guest.exited(INTERRUPTED if self._connections or self._server is None else 0)

    # Serving

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, self._bodies, self._respond)
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            connection.cut()
            return
        self._connections[connection] = task
        try:
            await connection.live()
        finally:
            del self._connections[connection]

    async def _respond(self, exchange: Exchange) -> None:
        variables = variables_of(exchange.request, exchange.body.size, self._told.env)
        if not await self._slot():
            await exchange.refuse(503)
            return
        running = await self._start(exchange, variables)
        try:
            async with within(self._request_s):
                await self._relay(running, exchange)
        except TimeoutError:
            await self._give_up(exchange, 504, f"no answer within {self._request_s:g} s")
        except (BadAnswerError, h11.LocalProtocolError) as error:
            await self._give_up(exchange, 502, str(error))
        finally:
            running.transport.close()

    async def _slot(self) -> bool:
        """Whether an instance may be made; the slot is the caller's then."""
        if self._waiting >= MAX_WAITING:
            return False
        self._waiting += 1
        try:
            async with within(WAIT_S):
                return await self._slots.acquire()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1

    async def _start(self, exchange: Exchange, variables: dict[str, str]) -> _Running:
        """Run the module in a thread, which ends with it; the slot is free when it has."""
        try:
            read_end, write_end, held, stdin = _pipes(exchange.body)
        except OSError:
            self._slots.release()
            raise
        live = self._threads.submit(self._live, variables, write_end, held, stdin)
        live.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._slots.release))
        output, transport = await self._reader_of(read_end)
        return _Running(output, transport, asyncio.wrap_future(live))

    def _live(self, variables: dict[str, str], stdout: int, held: int, stdin: int) -> Ended:
        """In a thread of the pool. `held` keeps the pipe readable until it was opened, which would wait for a reader."""
        began: list[int] = []

        def begin() -> None:
            began.append(held)
            os.close(held)

        try:
            body = _path(stdin) if stdin >= 0 else None
            return self._sandbox.run(self._run(variables, _path(stdout), _path(self._stderr), body, begin))
        except (BadModuleError, OSError, MemoryError) as error:
            return Ended(INTERRUPTED, trap=f"{type(error).__name__}: {error}")
        finally:
            if not began:
                os.close(held)
            os.close(stdout)
            if stdin >= 0:
                os.close(stdin)

    def _run(
        self, env: Mapping[str, str], stdout: Path, stderr: Path, stdin: Path | None, began: Callable[[], None]
    ) -> Run:
        return Run(
            argv=self._told.argv,
            env=env,
            directory=ROOT,
            stdout=stdout,
            stderr=stderr,
            stdin=stdin,
            memory_bytes=self._share,
            deadline_s=self._request_s + _LATER_S,
            began=began,
        )

    async def _relay(self, running: _Running, exchange: Exchange) -> None:
        """Pass an answer on as it is made.

        Raises:
            BadAnswerError, h11.LocalProtocolError, OSError
        """
        head: Head | None = None
        output = b""
        while data := await running.output.read(_PIPE_READ):
            output += data
            if head is None and (found := find_head(output)) is not None:
                head, output = parse_head(found[0]), found[1]
            if head is not None and output:
                if head.has_content(exchange.request.method):
                    await self._pass_on(exchange, head, output)
                output = b""
        ended = await asyncio.shield(running.ended)
        if head is None or ended.trap:
            raise BadAnswerError(_reason(ended))
        if not exchange.begun:
            await exchange.begin(head)
        await exchange.end()

    @staticmethod
    async def _pass_on(exchange: Exchange, head: Head, content: bytes) -> None:
        if not exchange.begun:
            await exchange.begin(head)
        await exchange.send(content)

    async def _give_up(self, exchange: Exchange, status: int, reason: str) -> None:
        """Say in the log why; and to the client, if it was told nothing yet."""
        asked = f"{exchange.request.method} {exchange.request.target}"[:200]
        told = f"cut off: {reason}" if exchange.begun else f"{status}: {reason}"
        self._guest.write(LogStream.STDERR, f"{asked}: {told.rstrip()}\n".encode(errors="replace"))
        if exchange.begun:
            exchange.cut()
        else:
            with suppress(OSError):
                await exchange.refuse(status)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _pipes(body: Body) -> tuple[int, int, int, int]:
    """What a run needs, and owns: both ends of its stdout, the reading one twice; its stdin, or -1. Raises `OSError`."""
    with ExitStack() as undo:
        opened = list(os.pipe2(os.O_CLOEXEC))
        for fd in opened:
            undo.callback(os.close, fd)
        for fd in (opened[0], body.fd if body.size else -1):
            opened.append(os.dup(fd) if fd >= 0 else -1)
            undo.callback(os.close, opened[-1])
        undo.pop_all()
    read_end, write_end, held, stdin = opened
    return read_end, write_end, held, stdin


def _path(fd: int) -> Path:
    """An open file by a name that a library can open."""
    return Path(f"{_OPEN_FILES}/{fd}")


def _reason(ended: Ended) -> str:
    if ended.timed_out:
        return "interrupted at its deadline"
    if ended.oom:
        return f"the module ran out of memory\n{ended.trap}"
    if ended.trap:
        return f"the module trapped\n{ended.trap}"
    return f"the module printed no headers of an answer, and ended with exit code {ended.exit_code}"
