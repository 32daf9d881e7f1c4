"""Start a VMM: fork, confine, drop, exec.

Theory. The child does, in this order: join its cgroups (as root, before anything of it can run), a session of its own, `/`
as directory, its cage, umask, rlimits, its descriptors to the numbers that the command line names, no groups, gid, uid,
and execve with an empty environment. The helper has one thread and set PR_SET_NO_NEW_PRIVS, which the child inherits. A step
that fails is told through a pipe that execve closes, so a spawn either succeeded or raises.

stdout and stderr go to a pipe that never blocks its writer: a VMM must not wait for a reader that is gone.

Trap: descriptors are close-on-exec until the last moment, and their targets may be numbers that others still have; so
they are first moved above all targets. So is the pipe's end, or what is told would be written to a VM's disk.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from plasmavmc.errors import HostError
from plasmavmc.host.helper.cage import Cage
from plasmavmc.host.operations import Limits, ProcessId
from plasmavmc.host.processes import read_process
from plasmavmc.host.signals import FORWARDED
from plasmavmc.types import GIB

FIRST_DESCRIPTOR = 3
ABOVE_TARGETS = 128
_MAX_FILES = 4096
_MAX_COMPLAINT = 1000
_ADDRESS_SPACE_EXTRA = 3 * GIB
"""Beside the guest's memory a VMM maps a translation cache, stacks and libraries; mostly never touched."""


@dataclass(frozen=True, slots=True)
class Identity:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. Descriptor i of `fds` becomes number 3 + i; `joins` are files of cgroups to write the pid to."""

    argv: Sequence[str]
    identity: Identity
    fds: Sequence[int]
    joins: Sequence[Path]
    rlimits: Mapping[int, int]
    umask: int = 0o077
    datagrams: bool = False
    """stdout is a socket of datagrams, for a program that does not survive SIGPIPE: where its reader is gone, a write fails
    and sends no signal. It has no end of file."""
    cage: Cage | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Started:
    process: ProcessId
    pidfd: int
    stdout: int


def numbered(names: Sequence[str]) -> dict[str, int]:
    """The numbers that named descriptors get in the child."""
    return {name: number for number, name in enumerate(names, FIRST_DESCRIPTOR)}


def start(program: Program) -> Started:
    """Run a program. The caller owns pidfd and stdout of the result.

    Raises:
        HostError: `vmm-spawn`, with the step that failed.
    """
    output, output_end = _datagrams() if program.datagrams else open_output()
    trouble, trouble_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _run_child(program, output_end, trouble_end)
    os.close(output_end)
    os.close(trouble_end)
    with os.fdopen(trouble, "rb") as pipe:
        message = pipe.read(_MAX_COMPLAINT)
    if message:
        os.waitpid(pid, 0)
        os.close(output)
        raise not_started(message)
    return started(pid, output)


def not_started(message: bytes) -> HostError:
    """A child has said that it could not become its program."""
    return HostError("vmm-spawn", f"the VMM was not started: {message.decode(errors='replace')}")


def started(pid: int, output: int) -> Started:
    """The new process. It is our child, so its number cannot be another's until we reap it.

    Raises:
        HostError: `vmm-spawn`, it has ended already; it is reaped, and `output` closed.
    """
    pidfd = os.pidfd_open(pid)
    process = read_process(pid)
    if process is None:
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        said = _last_words(output).decode(errors="replace").strip()
        code = os.waitstatus_to_exitcode(status)
        raise HostError("vmm-spawn", f"the VMM ended at once with code {code}", details=said)
    return Started(process.id, pidfd, output)


def open_output() -> tuple[int, int]:
    """A pipe that never blocks its writer: its ends for reading and for writing."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)
    return reading, writing


def _datagrams() -> tuple[int, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    return ours.detach(), theirs.detach()


def _last_words(output: int) -> bytes:
    """What an ended process wrote; closes the descriptor."""
    os.set_blocking(output, False)
    words = b""
    with suppress(BlockingIOError):
        while len(words) < 2048 and (more := os.read(output, 2048)):
            words += more
    os.close(output)
    return words


def _run_child(program: Program, output: int, trouble: int) -> NoReturn:
    try:
        trouble = above_targets(trouble)
        confine(program.joins, program.cage, program.umask, program.rlimits)
        place_descriptors(program.fds, output)
        drop(program.identity)
        run(program.argv, program.environment)
    except BaseException as error:  # noqa: BLE001 - nothing of the helper may run on in the child
        os.write(trouble, complaint(error))
    finally:
        os._exit(127)


def confine(joins: Sequence[Path], cage: Cage | None, umask: int, rlimits: Mapping[int, int]) -> None:
    """Part this process, which is root's still, from the helper's surroundings."""
    for join in joins:
        join.write_text("0")
    for number in (*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # no handler of the helper's, and nothing that execve would leave ignored
    os.setsid()
    os.chdir("/")
    if cage is not None:
        cage.enter()
    os.umask(umask)
    for limit, value in rlimits.items():
        resource.setrlimit(limit, (value, value))


def drop(identity: Identity) -> None:
    """Be this user for good."""
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)


def run(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> NoReturn:
    """Become the program, with this environment and no other."""
    os.execve(argv[0], list(argv), dict(environment or {}))  # noqa: S606 - no shell is what we want


def complaint(error: BaseException) -> bytes:
    """What a child says that could not become its program."""
    return f"{type(error).__name__}: {error}".encode()[:_MAX_COMPLAINT]


def above_targets(descriptor: int) -> int:
    """The same where `place_descriptors` puts nothing, to be closed by execve too."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE_TARGETS)


def place_descriptors(fds: Sequence[int], output: int) -> None:
    """Give this process nothing to read, `output` to write to, and descriptor i of `fds` as number 3 + i."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    sources = [null, output, output, *fds]
    moved = [above_targets(fd) for fd in sources]
    for target, fd in enumerate(moved):
        os.dup2(fd, target, inheritable=True)


def rlimits_for(limits: Limits, *, confined: bool, maps_freely: bool = False) -> dict[int, int]:
    """The rlimits of a VMM; memory and number of threads only where no cgroup bounds them.

    Who reserves far more addresses than it uses (`maps_freely`) is bound by what it could write to, not by addresses.
    """
    always = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: _MAX_FILES}
    if confined:
        return always
    memory = resource.RLIMIT_DATA if maps_freely else resource.RLIMIT_AS
    extra = 0 if maps_freely else _ADDRESS_SPACE_EXTRA
    return always | {memory: limits.memory_bytes + extra, resource.RLIMIT_NPROC: limits.pids}
