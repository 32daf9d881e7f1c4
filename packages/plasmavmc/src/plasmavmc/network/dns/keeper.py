"""Keeps one resolver running for an installation, and tells it what it has to know.

Theory. As HAProxy, the resolver outlives who started it: a session of its own, a cgroup of its own, and files that it reads
by itself. Who comes next looks for it first: a process of our own uid with exactly the command line that we would start; one
with another (of an older version) is replaced. The sockets come from the root helper, which binds them to the bridge's
gateway and to nothing else; they are kept here beside, so that questions wait in the kernel while a resolver that died is
started anew.

What is told is written first and hinted then (SIGHUP): a hint that is lost costs seconds. Nothing that is told waits for a
disk: a VM's start least of all.

A resolver that answers nobody is ended, and one that is only busy is not: it tells that it makes progress (`progress`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import structlog

from plasmavmc.deadlines import within
from plasmavmc.errors import PlasmaError
from plasmavmc.host.daemons import start_daemon
from plasmavmc.host.helper.cgroups import NONE as NO_CGROUPS
from plasmavmc.host.operations import RESOLVER_CGROUP, Host, Member, ProcessId
from plasmavmc.host.processes import argv_of, is_alive, kill, opened, processes, read_process, uids_of
from plasmavmc.network.dns import progress
from plasmavmc.network.dns.names import Askers, Names, askers_of, read_names, write_askers, write_names

MODULE = "plasmavmc.network.dns"
LOOK_EVERY_S = 10.0
PATIENCE_S = 3.0
"""For a sign of progress of a resolver that did not answer; it comes each second."""
_RETRY_S = 1.0
_GLANCE_S = 0.1
_END_S = 3.0
_UNLIMITED_REMEDY = "Guests are answered all the same; have the host give cgroup controllers (memory, cpu, pids)."
_REMEDY = "Free that port (ss -lunp 'sport = :53'), then restart the platform on this host."

log = structlog.get_logger("plasmavmc.resolver")


class ResolverKeeper:
    """`open`, then `run` until cancelled, then `close`. `run_dir` and `state_dir` are the resolver's alone."""

    def __init__(
        self,
        host: Host,
        run_dir: Path,
        state_dir: Path,
        *,
        answers: Callable[[], bool],
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """`answers` tells whether somebody answers at the gateway; it may take a while."""
        self._host = host
        self._answers = answers
        self._look_every_s = look_every_s
        self._run_dir = run_dir
        self._state_dir = state_dir
        places = (str(run_dir), str(state_dir))
        self._argv = (sys.executable, "-I", "-B", "-m", MODULE, *places, version("plasmavmc"))
        self._sockets: tuple[int, int] | None = None
        self._pidfd: int | None = None
        self._ended = asyncio.Event()
        self._news = asyncio.Event()
        self._askers: Askers | None = None
        self._names: Names | None = None
        self._written: tuple[Askers | None, Names | None] = (None, None)
        self.process: ProcessId | None = None
        self.trouble = ""
        """Why guests have no resolver here; empty where they have."""

    @property
    def serves(self) -> bool:
        """Guests may ask it."""
        return not self.trouble

    async def open(self) -> None:
        """Adopt the resolver that runs, or start one. Where that cannot be, `trouble` tells why: VMs run all the same, and
        ask the host's resolvers. The bridge is there already."""
        for directory in (self._run_dir, self._state_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._names = read_names(self._state_dir)
        self._written = (None, self._names)
        if await self._adopt():
            return
        try:
            await self._start()
        except PlasmaError as error:
            self.trouble = f"{error.brief} — {_REMEDY}"
            log.error("resolver.not_started", reason=error.brief, resolution=_REMEDY)

    def admit(self, members: Mapping[str, Member]) -> None:
        """These are the VMs of this host, by key."""
        self._askers = askers_of(members)
        self._news.set()

    def name(self, names: Names) -> None:
        """These are the names."""
        self._names = names
        self._news.set()

    async def run(self) -> None:
        """Write what is told, and keep a resolver alive, until cancelled."""
        if not self.serves:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell())
            tasks.create_task(self._revive())
            tasks.create_task(self._look_after())

    async def close(self, *, keep: bool) -> None:
        """Leave the resolver running, or end it."""
        if not keep:
            await self._end()
        self._unwatch()
        if self._sockets is not None:
            for descriptor in self._sockets:
                os.close(descriptor)
            self._sockets = None

    # What it is told

    async def _tell(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await asyncio.to_thread(self._write)
            except OSError as error:
                log.error("resolver.not_told", reason=str(error))
                await asyncio.sleep(_RETRY_S)
                self._news.set()
            else:
                self._signal(signal.SIGHUP)

    def _write(self) -> None:
        askers, names = self._written
        told_askers, told_names = self._askers, self._names
        if told_askers is not None and told_askers != askers:
            write_askers(self._run_dir, told_askers)
        if told_names is not None and told_names != names:
            write_names(self._state_dir, told_names)
        self._written = (told_askers, told_names)

    # Its life

    async def _revive(self) -> None:
        while True:
            await self._ended.wait()
            log.warning("resolver.ended", pid=self.process.pid if self.process else 0)
            try:
                await self._start()
            except PlasmaError as error:
                log.error("resolver.not_started", reason=error.brief, resolution=error.resolution)
            except OSError as error:  # no descriptors are left, say
                log.error("resolver.not_started", reason=str(error))
            await asyncio.sleep(_RETRY_S)

    async def _look_after(self) -> None:
        """End a resolver that lives and answers nobody; another one is started then."""
        while True:
            await asyncio.sleep(self._look_every_s)
            process, before = self.process, progress.said(self._run_dir)
            try:
                if self._pidfd is None or await asyncio.to_thread(self._answers):
                    continue
            except OSError as error:  # we cannot ask, which says nothing of the resolver
                log.warning("resolver.not_asked", reason=str(error))
                continue
            if await self._progresses(before):
                log.warning("resolver.busy", pid=process.pid if process else 0)
            elif self.process == process:
                log.warning("resolver.unresponsive", pid=process.pid if process else 0)
                self._signal(signal.SIGKILL)

    async def _progresses(self, before: int) -> bool:
        """Whether the resolver has dealt with questions since, or does within a while."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while progress.said(self._run_dir) == before:
            if loop.time() >= until:
                return False
            await asyncio.sleep(_GLANCE_S)
        return True

    async def _adopt(self) -> bool:
        """Take over the resolver that runs as we would start it; end any other of this installation."""
        for process in self._living():
            if self._pidfd is None and argv_of(process.pid) == self._argv and self._watch(process):
                log.info("resolver.adopted", pid=process.pid, confinement=await self._confine(process))
            else:
                await asyncio.to_thread(kill, process, _END_S)
        return self._pidfd is not None

    def _living(self) -> list[ProcessId]:
        own = {os.geteuid()}
        mark = ("-m", MODULE, str(self._run_dir))
        return [each.id for each in processes() if argv_of(each.id.pid)[3:6] == mark and uids_of(each.id.pid) == own]

    async def _start(self) -> None:
        if self._sockets is None:
            self._sockets = await self._host.resolver_sockets()
        pid = start_daemon(self._argv, self._sockets)
        try:
            process = read_process(pid)
            is_watched = process is not None and self._watch(process.id)
        except BaseException:  # one that nobody watches would stay, and with each try another
            _end_child(pid)
            raise
        if process is not None and is_watched:
            log.info("resolver.started", pid=pid, confinement=await self._confine(process.id))
        else:  # it has ended already
            self._on_end(pid)

    async def _confine(self, process: ProcessId) -> str:
        """Answers matter more than limits: a failure is told, and the resolver goes on."""
        try:
            confinement = await self._host.cgroup_place(RESOLVER_CGROUP, process)
        except PlasmaError as error:
            confinement, reason = "none", error.brief
        else:
            reason = "this host has no cgroups that limit memory" if confinement == NO_CGROUPS else ""
        if reason:
            log.warning("resolver.unlimited", reason=reason, resolution=_UNLIMITED_REMEDY)
        return confinement

    async def _end(self) -> None:
        self._signal(signal.SIGTERM)
        if self._pidfd is not None:
            with suppress(TimeoutError):
                async with within(_END_S):
                    await self._ended.wait()
        for process in self._living():
            await asyncio.to_thread(kill, process, _END_S)

    def _watch(self, process: ProcessId) -> bool:
        """Hold the process by a pidfd. False where it is gone."""
        self._unwatch()
        pidfd = opened(process)
        if pidfd is None:
            return False
        try:
            if alive := is_alive(process):
                asyncio.get_running_loop().add_reader(pidfd, self._on_end, process.pid)
        except OSError:
            os.close(pidfd)
            raise
        if not alive:
            os.close(pidfd)
            return False
        self.process, self._pidfd = process, pidfd
        self._ended.clear()
        return True

    def _on_end(self, pid: int) -> None:
        with suppress(ChildProcessError):  # adopted: it is another's child
            os.waitpid(pid, os.WNOHANG)
        self._unwatch()
        self._ended.set()

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


def _end_child(pid: int) -> None:
    """Kill a child that was just started, and reap it."""
    os.kill(pid, signal.SIGKILL)  # its number is its own until it is reaped
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
