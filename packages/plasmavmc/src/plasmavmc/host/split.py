"""One program becomes two: root's helper, and everything else without privileges.

Theory. `split` is called by root while there is one thread and no event loop. It forks. The parent stays root and serves
the few operations of `host.helper`; the child drops to the platform's user for good and goes on with the program, holding
one end of a socketpair. The parent is who was started, so it passes signals on and ends with the child's code. If one
dies, the other ends; VMs and HAProxy, which are in sessions of their own, stay.

Traps:
- PR_SET_PDEATHSIG is cleared by a change of uid, so it is set after it; and the parent may have died just before.
- A terminal sends its SIGINT to the whole foreground group. The child leaves the group, or it would get each twice.
- What is imported before the fork is shared; what needs threads must come after it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from plasmavmc.errors import HostError, PlasmaError
from plasmavmc.host.configuration import HelperConfiguration, Listener

__all__ = ["HelperConfiguration", "Listener", "Unreachable", "check_reachable", "split"]

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_UMASK = 0o077
_CANNOT_START = 1


def split(configuration: HelperConfiguration) -> int:
    """Fork; return in the unprivileged child with the descriptor for `HelperHost`. In the parent it never returns.

    Raises:
        HostError: `not-root`, `threads`; before anything is done.
    """
    if os.geteuid() != 0:
        raise HostError("not-root", "the platform must be started by root", resolution="use sudo")
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise HostError("threads", "the helper cannot be split off a process that has threads")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    helper_pid = os.getpid()
    child = os.fork()
    if child != 0:
        theirs.close()
        _be_helper(configuration, ours, child)
    ours.close()
    _become(configuration, helper_pid)
    return theirs.detach()


def _be_helper(configuration: HelperConfiguration, connection: socket.socket, child: int) -> NoReturn:
    """Serve, then end with the child's code. Nothing of the caller's runs on in this process, not even on an error."""
    code = _CANNOT_START
    try:
        _forward_signals(child)
        _serve(configuration, connection)
        code = _code_of(child)
    except PlasmaError as error:
        sys.stderr.write(f"plasmavmc helper: {error}\n")
        os.kill(child, signal.SIGTERM)
    except BaseException:  # noqa: BLE001 - the end of the helper ends the child
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _become(configuration: HelperConfiguration, helper_pid: int) -> None:
    """Drop for good, and die with the helper."""
    os.setpgid(0, 0)
    _drop(configuration.uid, configuration.gid)
    os.umask(_UMASK)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != helper_pid:
        os._exit(_CANNOT_START)


def _drop(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _serve(configuration: HelperConfiguration, connection: socket.socket) -> None:
    """Serve until the child closes the connection."""
    from plasmavmc.host.helper.loop import run_helper  # noqa: PLC0415 - only root's side loads netlink

    with connection:
        run_helper(configuration, connection)


def _forward_signals(child: int) -> None:
    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)  # our child: its number is not another's before we have waited for it

    for number in _FORWARDED:
        signal.signal(number, forward)


def _code_of(child: int) -> int:
    """Wait for the child; its exit code as a shell would tell it."""
    _, status = os.waitpid(child, 0)
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A path that the platform's user cannot use, and why."""

    path: Path
    mode: str
    """Of the part of the path that shuts it off, as `ls -l` shows it with its owner."""
    remedy: str


def check_reachable(uid: int, gid: int, paths: Iterable[Path]) -> list[Unreachable]:
    """Which of these paths a user cannot read (directories: enter and read). To be called by root, before the split.

    The kernel is asked, as that user, in a child that drops for good; so access lists and mounts count too.
    """
    paths = [path.absolute() for path in paths]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _report_reachable(uid, gid, paths, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answers = pipe.read()
    os.waitpid(child, 0)
    return [
        _explain(path)
        for path, answer in zip(paths, answers.ljust(len(paths), b"0"), strict=True)
        if answer == ord("0")
    ]


def _report_reachable(uid: int, gid: int, paths: list[Path], writing: int) -> None:
    try:
        _drop(uid, gid)
        os.write(writing, b"".join(b"1" if _can_use(path) else b"0" for path in paths))
    finally:
        os._exit(0)


def _can_use(path: Path) -> bool:
    try:
        return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)
    except OSError:
        return False


def _explain(path: Path) -> Unreachable:
    """The first part of a path that is not open to others, or the path itself."""
    if not path.exists():
        return Unreachable(path, "absent", f"{path} does not exist; make it, or run scripts/setup")
    resolved = path.resolve()
    for part in (*reversed(resolved.parents), resolved):
        status = part.stat()
        wanted = 0o005 if part.is_dir() else 0o004
        if status.st_mode & wanted != wanted:
            mode = f"{status.st_mode & 0o7777:04o} uid {status.st_uid}"
            return Unreachable(
                path, mode, f"chmod o+{'rx' if part.is_dir() else 'r'} {part}, or move it to a public place"
            )
    return Unreachable(path, f"{resolved.stat().st_mode & 0o7777:04o}", f"an access list or mount shuts {resolved} off")
