"""A VMM process seen from outside: who it is, that it ended, and how.

Theory. A process is named by its number and its start time, so that a later one of the same number is never mistaken
for it. Its end is an event: a pidfd becomes readable. The exit code belongs to the parent, which is the root helper; of
a process adopted after a restart of the helper nobody knows it.

Trap: a zombie keeps its number and its start time, and a pidfd can be opened for it. `host.processes` refuses it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from plasmavmc.errors import PlasmaError
from plasmavmc.host.operations import KILL_DEADLINE_S, Host, ProcessId, Spawned, UnendedError
from plasmavmc.host.pressure import pressure_of
from plasmavmc.host.processes import is_alive, opened
from plasmavmc.hypervisor.backend import VmmExit
from plasmavmc.hypervisor.console import Tail
from plasmavmc.types import VmHandle, VmUsage

COMPLAINT_LINES = 10
LAST_WORDS_S = 0.05
"""How long after the end the rest of pipe and console may take to arrive; both end with the process."""
REAP_S = 1.0
"""For the exit code, which a busy helper may tell late: who waits for the end shall not wait for that."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def process_of(handle: VmHandle) -> ProcessId:
    """The process of a VM that a handle is of."""
    return ProcessId(handle.pid, handle.start_time)


def usage_of(process: ProcessId) -> VmUsage:
    """Memory, CPU time and pressure of a process (proc(5)); nothing of one that has ended. Five short files at most are
    read, and only when somebody asks: a VM that nobody looks at costs nothing."""
    if not is_alive(process):
        return VmUsage()
    with suppress(OSError):
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS
        return VmUsage(int(fields[21]) * _PAGE, cpu_seconds, pressure=pressure_of(process.pid))
    return VmUsage()


class VmmProcess:
    """A VMM, watched. Owns the pidfd, the pipe with its complaints and its console."""

    def __init__(self, host: Host, key: str, process: ProcessId, pidfd: int, *, stdout: Tail | None) -> None:
        self.id = process
        self.console: Tail | None = None
        self._host = host
        self._key = key
        self._pidfd = pidfd
        self._stdout = stdout
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[VmmExit] = self._loop.create_future()
        self._reaper: asyncio.Task[None] | None = None
        self._loop.add_reader(pidfd, self._on_end)

    @classmethod
    def spawned(cls, host: Host, key: str, spawned: Spawned) -> VmmProcess:
        """Watch a process that the host has just started."""
        stdout = Tail(spawned.stdout) if spawned.stdout >= 0 else None
        return cls(host, key, ProcessId(spawned.pid, spawned.start_time), spawned.pidfd, stdout=stdout)

    @classmethod
    def adopted(cls, host: Host, key: str, process: ProcessId) -> VmmProcess | None:
        """Watch a process of an earlier life of ours; None where it has ended."""
        pidfd = opened(process)
        if pidfd is None:
            return None
        if not is_alive(process):  # again, after the pidfd is open, so that it is this process which the pidfd holds
            os.close(pidfd)
            return None
        return cls(host, key, process, pidfd, stdout=None)

    @property
    def alive(self) -> bool:
        return self._reaper is None

    async def wait(self) -> VmmExit:
        """Return when it has ended. Any number of tasks may wait, and be cancelled."""
        return await asyncio.shield(self._exit)

    async def ended(self, timeout_s: float) -> bool:
        """Whether it ended within `timeout_s`."""
        done, _ = await asyncio.wait({self._exit}, timeout=timeout_s)
        return bool(done)

    async def kill(self) -> None:
        """SIGKILL, and wait for its end.

        Raises:
            UnendedError: it is still there `KILL_DEADLINE_S` later.
            HostError, UnavailableError: the host could not send the signal.
        """
        if self.alive:
            await self._host.vm_signal(self._key, self.id, signal.SIGKILL)
        if not await self.ended(KILL_DEADLINE_S):
            raise UnendedError(self.id)

    def complaint(self) -> str:
        """The last lines that the VMM itself printed."""
        return "\n".join(self._stdout.ring.lines(COMPLAINT_LINES)) if self._stdout is not None else ""

    def close(self) -> None:
        """Stop watching. The process itself is not touched. Idempotent."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        for tail in (self._stdout, self.console):
            if tail is not None:
                tail.close()

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._reaper = self._loop.create_task(self._conclude(), name=f"reap {self._key}")

    async def _conclude(self) -> None:
        reaping = self._loop.create_task(self._reap())
        for tail in (self._stdout, self.console):
            if tail is not None:
                await tail.ended(LAST_WORDS_S)
        await asyncio.wait({reaping}, timeout=REAP_S)
        code = reaping.result() if reaping.done() else None
        console = self.console.ring.lines() if self.console is not None else ()
        self.close()
        self._exit.set_result(VmmExit(code, self.complaint(), console))
        await reaping

    async def _reap(self) -> int | None:
        try:
            return await self._host.vm_reap(self._key, self.id)
        except PlasmaError:
            return None  # the helper is gone: so is the exit code
