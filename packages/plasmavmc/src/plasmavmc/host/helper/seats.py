"""Seats: processes that wait, in their cages, to become a VMM.

Theory. Most of what a spawn takes is the same for every VMM: a lease, a fork, joining a cgroup (the kernel waits for a grace
period of RCU), a cage. So it is done ahead, while the host is idle, and `vm_spawn` only hands over a command line and
descriptors, for the process to become its program: one or two milliseconds instead of thirty.

A seat is nobody's VM. It is no process of root's either: before it says that it is ready it has joined its cgroup, entered
its cage, given up all descriptors but two (its end of a socketpair with the helper, and a pipe for what the VMM will print),
dropped to the uid that it will have, and become a small program of its own (`waiter`), with nothing of the helper's memory.
What is decided later needs no privilege: command line and descriptors. The checks of `vm_spawn` are made before these are
handed over, and nobody else can: the socketpair has no name.

Its uid is leased to the seat, and passed on with it to the first VM that asks for a uid with one. Where that VM's program
does not fit it after all (another cage), it is ended, and the VM started the long way under the same uid.

It ends: with the helper (its connection ends), with its lease, at a sweep, when another kind of seat is wanted. The helper
reaps it. It takes no part in `runs`, gets no signal of a client's and is in no record.

Traps:
- A fork that lived on would share the helper's memory: each page that the helper writes to is then copied first, at the next
  start's cost (850 of them, which took back half of what the seat won).
- A limit (setrlimit) above the own hard one needs root, so those of a seat are set before it drops; where memory is bound by
  them, because there are no cgroups, there are no seats.
- Nothing but `/usr` can be executed in the cage: with an interpreter from elsewhere there are no seats.

Source: unix(7), execve(2).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from plasmavmc.host import protocol
from plasmavmc.host.helper import spawn
from plasmavmc.host.helper.cage import USR, VmmCage
from plasmavmc.host.helper.cgroups import NONE, Cgroups
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Limits

LEASE = "seat"
"""Whom a seat's uid is leased to: no VM's key."""
_HAND_OVER_S = 2.0
"""It takes a millisecond; one that is stopped must not stop the helper."""
_READY = b"ready"
UMASK = 0o077
_NO_LIMITS = Limits(0, 0)
_INTERPRETER = Path(sys.executable).resolve()
_ALONE = ("-I", "-S", "-B", "-c")
_PROGRAM = Path(__file__).with_name("waiter.py").read_text()


@dataclass(frozen=True, slots=True)
class Kind:
    """What a seat is fit for: what cannot be changed once it waits."""

    cage: VmmCage
    groups: tuple[int, ...] = ()

    def fits(self, program: spawn.Program) -> bool:
        """Whether what waits can become this program, and is confined as it would be."""
        return (
            (program.cage, program.identity.groups) == (self.cage, self.groups)
            and program.umask == UMASK
            and not program.datagrams
            and not program.environment
            and len(program.fds) <= protocol.MAX_DESCRIPTORS
            and not any("\0" in argument for argument in program.argv)
        )


@dataclass(slots=True)
class Seat:
    """One waiting process, as the helper holds it."""

    pid: int
    pidfd: int
    connection: socket.socket
    output: int
    uid: int
    kind: Kind
    ready: bool = False

    @property
    def lives(self) -> bool:
        return not select.select([self.pidfd], [], [], 0)[0]

    def is_ready(self) -> bool:
        """Whether it waits for its orders."""
        if not self.ready and self.lives:
            with suppress(BlockingIOError):
                self.ready = self.connection.recv(len(_READY), socket.MSG_DONTWAIT) == _READY
        return self.ready and self.lives

    def become(self, program: spawn.Program) -> spawn.Started:
        """Let it be a program that it fits. It is no seat any more, whatever comes of it.

        Raises:
            HostError: `vmm-spawn`, with the step that failed.
        """
        self.connection.settimeout(_HAND_OVER_S)
        try:
            first, *rest = protocol.packets_of("\0".join(program.argv).encode())
            socket.send_fds(self.connection, [first], program.fds)
            for packet in rest:
                self.connection.send(packet)
            message = self.connection.recv(protocol.PACKET_BYTES)
        except OSError as error:
            message = spawn.complaint(error)
        self.connection.close()
        if message:
            self.end()
            raise spawn.not_started(message)
        os.close(self.pidfd)
        return spawn.started(self.pid, self.output)

    def end(self) -> None:
        """Kill and reap it."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.connection.close()
        protocol.close_all((self.pidfd, self.output))


class Seats:
    """Those of one installation: at most one that is free, and those whose uid a VM has taken."""

    def __init__(self, names: HostNames, cgroups: Cgroups, uids: Uids) -> None:
        self._names = names
        self._cgroups = cgroups
        self._uids = uids
        self._free: Seat | None = None
        self._taken: dict[str, Seat] = {}
        uids.free(LEASE)  # of an earlier life of the helper, with which its seat has ended

    @property
    def _all(self) -> tuple[Seat, ...]:
        return (*self._taken.values(), *((self._free,) if self._free else ()))

    @property
    def pids(self) -> frozenset[int]:
        return frozenset(seat.pid for seat in self._all)

    @property
    def pidfds(self) -> frozenset[int]:
        """Readable when a seat has ended."""
        return frozenset(seat.pidfd for seat in self._all)

    def make(self, kind: Kind) -> None:
        """Have a free one of this kind. It is made beside: it may be ready a little later.

        Raises:
            HostError, UnavailableError: the host refused.
        """
        if self._cgroups.confinement == NONE or not _INTERPRETER.is_relative_to(USR):
            return
        if self._free is not None and self._free.kind == kind and self._free.lives:
            return
        self._dismiss_free()
        uid = self._uids.take(LEASE)
        try:
            joins = self._cgroups.make(self._names.vm_cgroup(uid), None)
            self._free = _fork(uid, kind, joins)
        except BaseException:
            self._give_up(LEASE, uid)
            raise

    def take(self, key: str) -> int | None:
        """Pass a free seat on to VM `key`, which has no uid yet; its uid. None where none is ready."""
        seat = self._free
        if seat is None or not seat.is_ready():
            return None
        self._free = None
        self._taken[key] = seat
        self._uids.pass_on(LEASE, key)
        return seat.uid

    def claim(self, key: str, program: spawn.Program) -> Seat | None:
        """The seat that VM `key` has, to become this program; None where it has none that fits, and none any more."""
        seat = self._taken.pop(key, None)
        if seat is None:
            return None
        if seat.kind.fits(program) and seat.lives:
            return seat
        seat.end()
        return None

    def dismiss(self, key: str) -> None:
        """End VM `key`'s seat, where it has one."""
        seat = self._taken.pop(key, None)
        if seat is not None:
            seat.end()
            self._cgroups.remove(self._names.vm_cgroup(seat.uid))

    def dismiss_all(self) -> None:
        """End all of them. A VM that has taken a uid keeps it."""
        self._dismiss_free()
        for key in tuple(self._taken):
            self.dismiss(key)

    def collect(self) -> None:
        """Reap what has ended by itself."""
        if self._free is not None and not self._free.lives:
            self._dismiss_free()
        for key, seat in tuple(self._taken.items()):
            if not seat.lives:
                self.dismiss(key)

    def _dismiss_free(self) -> None:
        seat, self._free = self._free, None
        if seat is not None:
            seat.end()
            self._give_up(LEASE, seat.uid)

    def _give_up(self, key: str, uid: int) -> None:
        self._cgroups.remove(self._names.vm_cgroup(uid))
        self._uids.free(key)


def _fork(uid: int, kind: Kind, joins: Sequence[Path]) -> Seat:
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs = other.detach()
    output, output_end = spawn.open_output()
    pid = os.fork()
    if pid == 0:
        _sit(uid, kind, joins, (theirs, output_end))
    protocol.close_all((theirs, output_end))
    return Seat(pid, os.pidfd_open(pid), ours, output, uid, kind)


def _sit(uid: int, kind: Kind, joins: Sequence[Path], ends: tuple[int, int]) -> NoReturn:
    """Become a seat: one end of the socketpair, one of the pipe, and nothing else of the helper's."""
    try:
        spawn.place_descriptors(ends, os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
        try:
            spawn.confine(joins, kind.cage, UMASK, spawn.rlimits_for(_NO_LIMITS, confined=True))
            spawn.drop(spawn.Identity(uid, uid, kind.groups))
            spawn.run((str(_INTERPRETER), *_ALONE, _PROGRAM))
        except BaseException as error:  # noqa: BLE001 - it is told; nothing of the helper may run on in the child
            os.write(spawn.FIRST_DESCRIPTOR, spawn.complaint(error))
    finally:
        os._exit(127)
