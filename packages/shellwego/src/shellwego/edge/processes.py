"""Which HAProxy is ours, read from /proc.

Identity is three things together: our own uid, a command line of a master (`-W`) with our configuration file after `-f`,
and pid with start time. The file's path carries the installation, so two installations never take each other's. No pid file
is believed: one could be lost between start and write, and then the port would be held by a HAProxy that nobody knows.

Traps: workers are forks of the master and have its command line, so a master is one whose parent is not of the same kind. A
zombie still has pid and start time, but no command line. A reload re-executes the master with more arguments in front and
keeps pid and start time. A pid may be reused between look and use: signals go through a pidfd that was opened before the
last look.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shellwego.edge.settings import Layout

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    start_time: int
    """Clock ticks since boot (proc(5), /proc/pid/stat, field 22)."""
    parent: int


def haproxy_processes(layout: Layout) -> tuple[Process, ...]:
    """Every living HAProxy of this edge, the master first, then its workers."""
    found = {process.pid: process for process in _ours(layout)}
    return tuple(sorted(found.values(), key=lambda process: (process.parent in found, process.pid)))


def is_haproxy(layout: Layout, pid: int) -> Process | None:
    """The process with this pid, if it is a living HAProxy of this edge."""
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        owner = (_PROC / str(pid)).stat().st_uid
        process = _stat(pid)
    except (OSError, ValueError):
        return None
    ours = owner == os.geteuid() and b"-W" in arguments and _follows(arguments, b"-f", os.fsencode(layout.config))
    return process if ours else None


def _ours(layout: Layout) -> Iterator[Process]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            process = is_haproxy(layout, int(entry.name))
            if process is not None:
                yield process


def _follows(arguments: list[bytes], flag: bytes, value: bytes) -> bool:
    return any(pair == (flag, value) for pair in pairwise(arguments))


def _stat(pid: int) -> Process:
    """Raises `ValueError` for a process that has ended."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ValueError(f"process {pid} has ended")
    return Process(pid, int(fields[19]), int(fields[1]))
