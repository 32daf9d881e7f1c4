"""The other kind of VMM: the process that runs a WebAssembly module.

Theory. It is no program of the system's but our own code, run by the interpreter and from the packages that root itself
runs now; so what is checked is that only root could have written both (`check_program`), and nothing of the command line
comes from the caller but name and descriptor. It runs as a VM's uid, in the cage below: a module that broke out of its
sandbox, and then out of the library, finds a network without interfaces and no directory to write but its own.

A cage is namespaces for network, mounts, System V objects and the host's name. On the run directory, which every host of
ours has and in which the sockets of all VMs lie, a tmpfs of the worker's own is mounted: it covers those sockets, has a
bounded size, and is gone with the process. Source: unshare(2), mount(2), tmpfs(5).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plasmavmc
from plasmavmc.host.configuration import WASM_WORKER
from plasmavmc.host.helper.cage import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, part
from plasmavmc.host.operations import WORKER_FILES_BYTES

SCRIPT = Path(plasmavmc.__file__).parent / "hypervisor" / "wasm" / "worker.py"
_MAX_FILES = 16_384


def is_worker(argv: Sequence[str]) -> bool:
    """Whether a request is for a WebAssembly worker."""
    return argv[0] == WASM_WORKER


def is_worker_process(argv: Sequence[str]) -> bool:
    """Whether the command line of a process is a worker's."""
    return str(SCRIPT) in argv[1:4]


def programs() -> tuple[Path, ...]:
    """The files that a worker is run from, which root alone may have written."""
    return (Path(sys.executable), SCRIPT)


def command_line(argv: Sequence[str], numbers: Mapping[str, int]) -> list[str]:
    """A worker's real command line, of an accepted request. `-I`: nothing of environment or directory is imported."""
    name, control = argv[2], argv[4].strip("@")
    return [sys.executable, "-I", "-B", str(SCRIPT), "-name", name, "-control", str(numbers[control])]


@dataclass(frozen=True, slots=True)
class WorkerCage:
    """Where a worker lives; `enter` is called as root, in the process that becomes it."""

    cover: Path
    """The directory that its own is mounted over."""
    uid: int

    def enter(self) -> None:
        """Part from the host, and stand in the own directory.

        Raises:
            OSError: the kernel refused.
        """
        part()
        options = f"size={WORKER_FILES_BYTES},nr_inodes={_MAX_FILES},mode=700,uid={self.uid},gid={self.uid}"
        mount("none", self.cover, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
        os.chdir(self.cover)
