"""HAProxy's life: found, started, reloaded, watched, stopped. The only module of the platform that starts a process.

Theory. HAProxy outlives the edge: it runs in a session of its own, and an edge that starts first looks for one that lives
(`processes`) and adopts it, before anybody binds a port. The listening socket comes from outside (`listen`, only called when
a HAProxy must be started) and is handed down as descriptor 3. The edge keeps its copy open, so that connections wait in the
kernel's queue while a HAProxy that died is built anew.

The master ends when its worker dies, and a worker when its master does, so the master's pidfd tells of both.

A reload is verified, never assumed: the master answers nothing to it, and keeps the old worker when the new one fails.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

from shellwego.core.errors import ShellWeGoError, UnavailableError
from shellwego.edge import config
from shellwego.edge.processes import Process, haproxy_processes, is_haproxy
from shellwego.edge.routes import write_atomic
from shellwego.edge.runtime import Master, Processes, RuntimeApiError, Worker
from shellwego.edge.settings import EdgeSettings, Layout

Listen = Callable[[], Awaitable[int]]
"""Gives a listening socket's descriptor, which the edge owns from then on. Raises where the port is taken."""
Place = Callable[[int, int], Awaitable[str]]
"""Puts a process (pid, start time) into the edge's cgroup; returns how it is confined."""

T = TypeVar("T")

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SOCKET = 3
_POLL_S = 0.02
_END_S = 5.0
_STOP_POLL_S = 0.1
_CALM_POLLS = 3
"""The last bytes of an answer may still be on their way to the client when its server is done."""
_MAX_RUN_DIR = 80

_log = structlog.get_logger(__name__)


def _environment(listener: int) -> dict[str, str]:
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", config.SOCKET_VARIABLE: str(listener)}


def _reap(pid: int) -> bool:
    """True where the process was our child and has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # adopted: its parent is not we
        return False


class HaproxyError(UnavailableError):
    """HAProxy cannot be started, or does not do what it was told."""


def find_program(path: str = PATH) -> str:
    """The absolute path of haproxy.

    Raises:
        HaproxyError: it is not installed.
    """
    found = shutil.which("haproxy", path=path)
    if found is None:
        raise HaproxyError(
            "missing-program",
            f"the program haproxy is not installed (looked in {path})",
            resolution="apt-get install haproxy, or run scripts/setup",
        )
    return found


class Haproxy:
    """One HAProxy of one edge. Calls come one at a time, from one task."""

    def __init__(self, settings: EdgeSettings, listen: Listen, place: Place) -> None:
        if len(str(settings.run_dir)) > _MAX_RUN_DIR:
            raise HaproxyError(
                "path-too-long",
                f"{settings.run_dir}: the edge's run directory has more than {_MAX_RUN_DIR} characters",
                resolution="use a shorter one; its sockets would not fit",
            )
        self._layout = Layout(settings.run_dir)
        self._patience_s = settings.unresponsive_s
        self._listen = listen
        self._place = place
        self._socket: int | None = None
        self._pidfd: int | None = None
        self._process: Process | None = None
        self._ended = asyncio.Event()
        self.worker = Worker(self._layout)
        self.master = Master(self._layout)

    @property
    def process(self) -> Process | None:
        """The master that is driven now."""
        return self._process

    @property
    def alive(self) -> bool:
        return self._process is not None and not self._ended.is_set()

    async def wait_ended(self) -> None:
        """Until the master has ended; at once where there is none."""
        if self._process is not None:
            await self._ended.wait()

    async def adopt(self) -> bool:
        """Take over a HAProxy of this edge that lives and answers. One that does not answer is ended."""
        for process in haproxy_processes(self._layout)[:1]:
            if not self._watch(process):
                return False
            try:
                await self._within(self._patience_s, self._settled)
            except HaproxyError:
                _log.warning("edge.haproxy_unresponsive", pid=process.pid)
                await self.kill()
                return False
            _log.info("edge.haproxy_adopted", pid=process.pid)
            return True
        return False

    async def start(self, files: Mapping[Path, str]) -> None:
        """Start a HAProxy that reads these files, and wait until it serves.

        Raises:
            HaproxyError: it is missing, refuses its configuration, or does not come up.
            ShellWeGoError: from `listen`.
        """
        program = find_program()
        await self._end_leftovers()
        self._write(files)
        if self._socket is None:
            self._socket = await self._listen()
        process = await self._spawned(self._spawn(program, self._socket))
        if process is None or not self._watch(process):
            raise await self._refusal(program)
        try:
            await self._confine(process)
            await self._within(self._patience_s, self._settled)
        except HaproxyError as error:
            ended = not self.alive
            await self.kill()
            raise (await self._refusal(program) if ended else error) from error
        await self._place_workers()
        _log.info("edge.haproxy_started", pid=process.pid)

    async def reload(self, files: Mapping[Path, str]) -> None:
        """Bring up a worker with these files beside the old one, which finishes what it has and is then gone.

        Raises:
            HaproxyError: the new worker did not come up; the old one serves on.
            RuntimeApiError: HAProxy does not answer.
        """
        before = await self.master.processes()
        self._write(files)
        await self.master.reload()

        async def renewed() -> Processes | None:
            now = await self._settled()
            if now is not None and now.failed_reloads > before.failed_reloads:
                raise await self._refusal(find_program())
            return now if now is not None and now.worker != before.worker else None

        after = await self._within(self._patience_s, renewed)
        await self._place_workers()
        _log.info("edge.haproxy_reloaded", worker=after.worker, old=after.old)

    async def stop(self, grace_s: float) -> None:
        """Take no new connection, let requests in flight finish within the grace, then end."""
        if not self.alive:
            return
        workers = [process.pid for process in haproxy_processes(self._layout)[1:]]
        self._signal(signal.SIGUSR1)
        calm = 0
        for _ in range(round(grace_s / _STOP_POLL_S)):
            calm = 0 if await self._busy(workers) else calm + 1
            if calm == _CALM_POLLS or not self.alive:
                break
            await asyncio.sleep(_STOP_POLL_S)
        await self.kill()

    async def _busy(self, workers: list[int]) -> bool:
        """Whether any request is in flight. Idle clients would keep a stopping HAProxy for their whole time-out."""
        try:
            used = [sum((await self.master.connections(pid)).values()) for pid in workers]
        except RuntimeApiError:
            return True
        return any(used)

    async def kill(self) -> None:
        """End master and workers at once."""
        self._signal(signal.SIGKILL)
        await self.wait_ended()
        await self._end_leftovers()

    def release(self) -> None:
        """Let go of HAProxy, which runs on, and of the socket."""
        self._unwatch()
        if self._socket is not None:
            os.close(self._socket)
            self._socket = None

    def _write(self, files: Mapping[Path, str]) -> None:
        try:
            self._layout.pages_dir.mkdir(mode=0o700, exist_ok=True)
            for path, text in files.items():
                write_atomic(path, text.encode())
        except OSError as error:
            raise HaproxyError(
                "edge-files",
                f"cannot write HAProxy's files: {error.filename or self._layout.run_dir}: {error.strerror}",
                resolution="make room on the disk, or give the directory to the edge's user",
            ) from error

    def _spawn(self, program: str, listener: int) -> int:
        return os.posix_spawn(
            program,
            config.argv(program, self._layout),
            _environment(_SOCKET),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
                (os.POSIX_SPAWN_DUP2, listener, _SOCKET),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )

    async def _spawned(self, pid: int) -> Process | None:
        """Our child as /proc shows it; None where it has ended. For an instant after exec, its command line is empty."""
        for _ in range(1000):
            if _reap(pid):
                return None
            process = is_haproxy(self._layout, pid)
            if process is not None:
                return process
            await asyncio.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        return None

    async def _settled(self) -> Processes | None:
        """The processes, once the admin socket belongs to the current worker."""
        try:
            processes = await self.master.processes()
            return processes if await self.worker.pid() == processes.worker else None
        except RuntimeApiError:
            return None

    async def _within(self, seconds: float, attempt: Callable[[], Awaitable[T | None]]) -> T:
        """Try until it yields something.

        Raises:
            HaproxyError: not in time, or the master ended.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while self.alive and asyncio.get_running_loop().time() < deadline:
            result = await attempt()
            if result is not None:
                return result
            await asyncio.sleep(_POLL_S)
        what = "does not answer" if self.alive else "has ended"
        raise HaproxyError("edge-haproxy", f"HAProxy {what}", resolution="it is started again; see the edge's log")

    async def _refusal(self, program: str) -> HaproxyError:
        """Why HAProxy does not run with the present files, in its own words."""
        with socket.socket() as stand_in:
            child = await asyncio.create_subprocess_exec(
                *config.check_argv(program, self._layout),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(stand_in.fileno()),
                pass_fds=(stand_in.fileno(),),
            )
            _, output = await child.communicate()
        alerts = [line for line in output.decode(errors="replace").splitlines() if "[ALERT]" in line]
        reason = alerts[0][:500] if alerts else "it accepts its configuration, yet ended"
        return HaproxyError(
            "edge-haproxy", f"HAProxy does not start: {reason}", resolution=f"see {self._layout.config}"
        )

    async def _place_workers(self) -> None:
        for process in haproxy_processes(self._layout):
            await self._confine(process)

    async def _confine(self, process: Process) -> None:
        """Serving matters more than its limits: a failure is told, and HAProxy goes on."""
        try:
            confinement = await self._place(process.pid, process.start_time)
        except ShellWeGoError as error:
            confinement = f"none: {error.message}"
        _log.info("edge.haproxy_placed", pid=process.pid, confinement=confinement)

    def _watch(self, process: Process) -> bool:
        """Hold the process by a pidfd. False where it is gone."""
        self._unwatch()
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        if is_haproxy(self._layout, process.pid) != process:
            os.close(pidfd)
            return False
        self._process, self._pidfd = process, pidfd
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._on_end, process.pid)
        return True

    def _on_end(self, pid: int) -> None:
        _reap(pid)
        self._unwatch(keep_process=True)
        self._ended.set()

    def _unwatch(self, *, keep_process: bool = False) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if not keep_process:
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def _end_leftovers(self) -> None:
        """End what is left of a HAProxy of this edge whose master is gone, or which we do not drive."""
        for process in haproxy_processes(self._layout):
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(process.pid)
                try:
                    if is_haproxy(self._layout, process.pid) == process:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
        for _ in range(round(_END_S / _POLL_S)):
            if not haproxy_processes(self._layout):
                return
            await asyncio.sleep(_POLL_S)
