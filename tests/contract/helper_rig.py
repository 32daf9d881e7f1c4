"""What rigs of real VMMs have in common: the root helper, descriptors of their own, and eyes on what is left on the host."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path

from plasmavmc.host.operations import ProcessId
from plasmavmc.host.processes import is_alive
from plasmavmc.types import VmHandle
from tests.contract.host_rig import RealHelper

ZOMBIE_S = 2.0


class HelperRig:
    """A part of a hypervisor's `Rig`: all that does not depend on which VMM it is."""

    def __init__(self, helper: RealHelper, directory: Path) -> None:
        self.helper = helper
        self.directory = directory
        """Short: a socket's path has 107 bytes."""
        self._fds: list[int] = []

    def kill(self, handle: VmHandle) -> None:
        os.kill(handle.pid, signal.SIGKILL)

    def make_zombie(self, handle: VmHandle) -> None:
        """The helper, which would reap it, is held for a moment."""
        self.helper.process.send_signal(signal.SIGSTOP)
        pidfd = os.pidfd_open(handle.pid)
        self.kill(handle)
        select.select([pidfd], [], [], 10.0)
        os.close(pidfd)
        asyncio.get_running_loop().call_later(ZOMBIE_S, self.helper.process.send_signal, signal.SIGCONT)

    def lives(self, handle: VmHandle) -> bool:
        return is_alive(ProcessId(handle.pid, handle.start_time))

    def traces(self) -> frozenset[str]:
        open_now = {int(link.name) for link in Path("/proc/self/fd").iterdir()}
        ours = [fd for fd in open_now if _is_open(fd) and fd not in self._fds]
        sockets = {str(path) for path in self.directory.glob("*/*.sock")}
        leases = {f"uid {path.name}" for path in (self.helper.configuration.run_root / "uids").glob("*")}
        return frozenset({f"{len(ours)} descriptors"} | sockets | leases | self.helper.cgroups())

    def _open(self, path: Path, flags: int) -> int:
        """Open a file for as long as the rig lasts."""
        self._fds.append(os.open(path, flags | os.O_CLOEXEC))
        return self._fds[-1]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
