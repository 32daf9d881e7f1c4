"""The VMMs that this helper has started: begun in their cages and cgroups, watched, reaped.

Theory. A VMM is our child, so its number is nobody else's until we reap it; we hold a pidfd of each, which can be read once
it has ended. Its code is kept until somebody asks for it. VMMs that an earlier helper started are init's: they are found by
their cgroups and uids (`sweep`), and nothing is known of their codes.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from plasmavmc.errors import HostError
from plasmavmc.host import protocol
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.helper import argv, checks, spawn, worker
from plasmavmc.host.helper.cage import Cage, VmmCage
from plasmavmc.host.helper.cgroups import NONE, Cgroups
from plasmavmc.host.helper.fences import Fences, fenced
from plasmavmc.host.helper.jails import HelperJails
from plasmavmc.host.helper.links import Links
from plasmavmc.host.helper.namespaces import open_namespace
from plasmavmc.host.helper.programs import KVM, check_program, kvm_access, open_kvm
from plasmavmc.host.helper.seats import Kind, Seats
from plasmavmc.host.helper.sweep import Sweeper
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.helper.vm_groups import VmGroups
from plasmavmc.host.operations import Limits, ProcessId
from plasmavmc.host.processes import is_alive, uids_of

_DROP_S = 2.0
_LOOK_S = 0.001
"""The jailer copies its program and gives up being root within milliseconds."""
_MAX_CODES = 4096
"""Exit codes kept for who asks later; the oldest are forgotten."""


class Launched(NamedTuple):
    """A VMM that was started, with its pidfd and the end of a pipe that has what it prints."""

    process: protocol.SpawnedProcess
    fds: tuple[int, int]


class _Child(NamedTuple):
    """Whose VMM it is, and which."""

    key: str
    process: ProcessId


class Vmms:
    """Of one installation."""

    def __init__(
        self,
        configuration: HelperConfiguration,
        *,
        links: Links,
        cgroups: Cgroups,
        uids: Uids,
        groups: VmGroups,
        seats: Seats,
        fences: Fences,
        jails: HelperJails,
        sweeper: Sweeper,
    ) -> None:
        self._configuration = configuration
        self._names = configuration.names
        self._links = links
        self._cgroups = cgroups
        self._uids = uids
        self._groups = groups
        self._seats = seats
        self._fences = fences
        self._jails = jails
        self._sweeper = sweeper
        self._children: dict[int, _Child] = {}
        """Those that have not ended, by a pidfd of ours."""
        self._codes: dict[ProcessId, int] = {}

    @property
    def pidfds(self) -> frozenset[int]:
        """Descriptors that can be read when there is something to collect."""
        return frozenset(self._children)

    def close(self) -> None:
        """Let go of those that run; they run on."""
        protocol.close_all(self._children)

    def collect(self) -> None:
        """Reap those that have ended, and keep their codes."""
        for pidfd, (_, process) in list(self._children.items()):
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                self._codes[process] = os.waitstatus_to_exitcode(status)
                while len(self._codes) > _MAX_CODES:
                    del self._codes[next(iter(self._codes))]
                os.close(pidfd)
                del self._children[pidfd]

    def reap(self, key: str, process: ProcessId) -> int | None:
        """The exit code of VM `key`'s VMM that was collected, told once; None: it was not ours, or it is told already. What
        it left running is ended, and its cgroup removed, where no other began under that key.

        Raises:
            HostError: `vm-running`, it has not ended.
        """
        running = self._children.values()
        if any(each.process == process for each in running):
            raise HostError("vm-running", f"the VMM {process.pid} has not ended")
        if not is_alive(process) and all(each.key != key for each in running):
            self._groups.clear(key)
        return self._codes.pop(process, None)

    def runs(self, key: str) -> bool:
        """Whether VM `key` has a process."""
        return self._sweeper.runs(key, self._seats.pids)

    def start(self, request: protocol.VmSpawn, fds: tuple[int, ...]) -> Launched:
        """Start a VMM whose command line was checked. The caller owns the descriptors of the result.

        Raises:
            HostError: `fenced`, its time is over; `vmm-spawn`, with the step that failed.
        """
        uid = self._uids.of(request.key)
        names = request.fds
        kvm: tuple[int, ...] = ()
        if argv.wants_kvm_descriptor(request.argv):
            names, kvm = (*names, argv.KVM_DESCRIPTOR), (open_kvm(),)
        try:
            is_worker = worker.is_worker(request.argv)
            numbers = spawn.numbered(names)
            final = worker.command_line(request.argv, numbers) if is_worker else argv.final_argv(request.argv, numbers)
            kind = self.kind(kvm=argv.wants_kvm(request.argv) and not kvm)
            identity = spawn.Identity(uid, uid, kind.groups)
            cage = worker.WorkerCage(self._configuration.run_root, uid) if is_worker else kind.cage
            return self._launch(request.key, request.limits, final, identity, (*fds, *kvm), cage=cage)
        finally:
            protocol.close_all(kvm)

    def kind(self, *, kvm: bool) -> Kind:
        """The cage and the groups of a VMM, which may have to open /dev/kvm."""
        return Kind(VmmCage(self._configuration.run_root, (KVM,) if kvm else ()), kvm_access() if kvm else ())

    def start_jailed(self, request: protocol.JailSpawn) -> Launched:
        """As `start`, in the VM's jail. The jailer begins as root; this returns once it is the VM's uid, so that it can be
        sent signals."""
        key, tap = request.key, request.tap
        for program in (self._configuration.jailer, self._configuration.firecracker):
            check_program(Path(program))
        uid = self._uids.of(key)
        os.close(self._jails.open(key))
        self.refuse_running(key)
        fds = () if tap is None else (open_namespace(self._links, tap, self._names.bridge, uid),)
        try:
            command = self._jails.argv(key, uid, wired=tap is not None)
            launched = self._launch(key, request.limits, command, spawn.Identity(0, 0), fds, jailed=True)
        finally:
            protocol.close_all(fds)
        deadline = time.monotonic() + _DROP_S
        ended = False
        while not ended and uids_of(launched.process.pid) == {0} and time.monotonic() < deadline:
            ended = bool(select.select([launched.fds[0]], [], [], _LOOK_S)[0])
        return launched

    def _launch(
        self,
        key: str,
        limits: Limits,
        command: Sequence[str],
        identity: spawn.Identity,
        fds: Sequence[int],
        *,
        jailed: bool = False,
        cage: Cage | None = None,
    ) -> Launched:
        if self._fences.is_over(key):
            raise fenced(key)
        group = self._groups.fresh(key)
        joins = self._cgroups.make(group, limits)
        confined = self._cgroups.confinement != NONE
        rlimits = spawn.rlimits_for(limits, confined=confined, maps_freely=isinstance(cage, worker.WorkerCage))
        program = spawn.Program(
            command, identity, fds, joins, rlimits, 0o007 if jailed else 0o077, datagrams=jailed, cage=cage
        )
        try:
            seat = self._seats.claim(key, program)
            started = spawn.start(program) if seat is None else seat.become(program)
        except BaseException:
            self._cgroups.remove(group)
            raise
        self._children[os.dup(started.pidfd)] = _Child(key, started.process)
        reply = protocol.SpawnedProcess(started.process.pid, started.process.start_time, self._cgroups.confinement)
        return Launched(reply, (started.pidfd, started.stdout))

    def refuse_running(self, key: str) -> None:
        """Raise the refusal of what a VM must not have a process for."""
        if self.runs(key):
            raise checks.refusal("a VM", f"{key} runs already")

    def check_is_of(self, key: str, uid: int, pid: int) -> None:
        """Raise the refusal of what is asked for a process that is not this VM's, by the VM's uid and its cgroup."""
        if uids_of(pid) != {uid}:
            raise checks.refusal("a process", f"{pid} is not of VM {key}'s uid")
        confined = self._cgroups.confinement != NONE
        if pid in self._seats.pids or (confined and pid not in self._groups.members(key)):
            raise checks.refusal("a process", f"{pid} is not in VM {key}'s cgroup")
