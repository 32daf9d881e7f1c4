"""Processes as /proc tells of them, without trust in a number alone.

Theory. A pid is reused, so a process is named by pid and start time. A pidfd opened *before* the identity is read holds
that very process for good: whoever opens, compares and then signals through it can never hit another.

Traps: a zombie keeps its pid, start time and pidfd. It has ended, so it is never found alive here. A process whose first
thread alone has ended looks like one, and runs on with all that it has open: nobody's wait for its end is over.
Source: proc(5), pidfd_open(2).
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from select import POLLIN, poll

from plasmavmc.host.operations import ProcessId

PROC = Path("/proc")
_MAX_PROC_FILE = 64 * 1024
_NO_PROCESS = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""pidfd_open(2): nothing has this number, or a thread that leads no others (EINVAL, of newer kernels ENOENT)."""
_ENDED_STATES = "ZXx"
"""Of the first thread."""
_STATE, _PARENT, _SESSION, _THREADS, _START_TIME = 0, 1, 3, 17, 19
"""In a line of stat, behind the name."""


@dataclass(frozen=True, slots=True)
class Process:
    """A living process, as of one reading."""

    id: ProcessId
    parent: int
    session: int


def parse_stat(pid: int, text: str) -> Process | None:
    """A living process of a line of /proc/<pid>/stat. Its second field is a name in brackets that may hold anything."""
    fields = text.rpartition(")")[2].split()
    if fields[_STATE] in _ENDED_STATES and int(fields[_THREADS]) <= 1:
        return None
    return Process(ProcessId(pid, int(fields[_START_TIME])), int(fields[_PARENT]), int(fields[_SESSION]))


def read_process(pid: int) -> Process | None:
    """The living process of this number; None where there is none, or only a zombie."""
    text = _read(pid, "stat")
    return parse_stat(pid, text) if text else None


def is_alive(process: ProcessId) -> bool:
    """Whether this very process lives."""
    found = read_process(process.pid)
    return found is not None and found.id == process


def processes() -> Iterator[Process]:
    """All living processes."""
    for name in os.listdir(PROC):  # noqa: PTH208 - a Path for each of thousands of entries would cost more than the scan
        if name.isdecimal() and (process := read_process(int(name))) is not None:
            yield process


def uids_of(pid: int) -> frozenset[int]:
    """The real, effective, saved and file system uid of a process; empty where it is gone."""
    for line in _read(pid, "status").splitlines():
        if line.startswith("Uid:"):
            return frozenset(int(uid) for uid in line.split()[1:])
    return frozenset()


def has_process(uid: int) -> bool:
    """Whether some process, a zombie too, is of this uid. One system call, since a start waits for it.

    Asked is the real uid (getpriority(2), `PRIO_USER`). No process of a VM's uid has another one beside: it runs without
    privileges, and what it started could gain none.
    """
    try:
        os.getpriority(os.PRIO_USER, uid)
    except ProcessLookupError:
        return False
    return True


def argv_of(pid: int) -> tuple[str, ...]:
    """The command line of a process; empty for a kernel thread and where it is gone."""
    return tuple(_read(pid, "cmdline").split("\0")[:-1])


def opened(process: ProcessId) -> int | None:
    """A pidfd of what has the number of this process, or None where that has ended. Whether it is this very process is told
    by `is_alive` while the pidfd is open.

    Raises:
        OSError: no descriptor is to be had.
    """
    if not is_alive(process):  # its number may be a thread's by now, of which there is no pidfd
        return None
    try:
        return os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise


@contextmanager
def held(process: ProcessId) -> Iterator[int | None]:
    """A pidfd of this very living process for the length of the block, or None where it has ended."""
    pidfd = opened(process)
    if pidfd is None:
        yield None
        return
    try:
        yield pidfd if is_alive(process) else None
    finally:
        os.close(pidfd)


def kill(process: ProcessId, timeout_s: float) -> bool:
    """SIGKILL this very process and wait for its end. False where it still lives at the deadline."""
    with held(process) as pidfd:
        if pidfd is None:
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        waiting = poll()
        waiting.register(pidfd, POLLIN)
        return bool(waiting.poll(timeout_s * 1000))


def _read(pid: int, name: str) -> str:
    try:
        with (PROC / str(pid) / name).open(encoding="latin-1") as file:
            return file.read(_MAX_PROC_FILE)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
