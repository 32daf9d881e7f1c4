"""One program becomes two: root's helper, and everything else without privileges.

Theory. `split` is called by root while there is one thread and no event loop. It forks. The parent stays root and serves
the few operations of `host.helper`; the child drops to the platform's user for good and goes on with the program, holding
one end of a socketpair. The parent is who was started, so it passes signals on (`host.signals`) and ends with the child's
code. If one dies, the other ends; VMs and HAProxy, which are in sessions of their own, stay.

Traps:
- PR_SET_PDEATHSIG is cleared by a change of uid, so it is set after it; and the parent may have died just before.
- A terminal sends its SIGINT to the whole foreground group, so that the child would get each twice; and whoever has it as
  the controlling terminal can type into it (TIOCSTI), which root's shell would run. So the child leaves the session.
- What is imported before the fork is shared; what needs threads must come after it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from plasmavmc.errors import HostError, PlasmaError
from plasmavmc.host.configuration import HelperConfiguration, Listener
from plasmavmc.host.signals import SignalRelay, hold_back, release

__all__ = ["HelperConfiguration", "Listener", "Unreachable", "check_reachable", "split"]

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
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
    mask = hold_back()
    child = os.fork()
    if child != 0:
        theirs.close()
        _be_helper(configuration, ours, child)
    ours.close()
    _become(configuration, helper_pid)
    release(mask)
    return theirs.detach()


def _be_helper(configuration: HelperConfiguration, connection: socket.socket, child: int) -> NoReturn:
    """Serve, then end with the child's code. Nothing of the caller's runs on in this process, not even on an error."""
    code = _CANNOT_START
    try:
        relay = SignalRelay(child)
        _serve(configuration, connection, relay)
        code = _code_of(child, relay)
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
    os.setsid()
    _drop(configuration.uid, configuration.gid)
    os.umask(_UMASK)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != helper_pid:
        os._exit(_CANNOT_START)


def _drop(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _serve(configuration: HelperConfiguration, connection: socket.socket, relay: SignalRelay) -> None:
    """Serve until the child closes the connection."""
    from plasmavmc.host.helper.loop import run_helper  # noqa: PLC0415 - only root's side loads netlink

    with connection:
        run_helper(configuration, connection, relay.wait)


def _code_of(child: int, relay: SignalRelay) -> int:
    """Wait for the child; its exit code as a shell would tell it."""
    pidfd = os.pidfd_open(child)
    relay.wait((pidfd,))
    relay.end()
    _, status = os.waitpid(child, 0)
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
    """Of the part of the path that shuts it off, as `ls -l` shows it, with its owner."""
    remedy: str


def check_reachable(uid: int, gid: int, paths: Iterable[Path]) -> list[Unreachable]:
    """Which of these paths a user cannot read (directories: enter and read). To be called by root, before the split.

    The kernel is asked, as that user, in a child that drops for good; so access lists and mounts count too.
    """
    real = [path.resolve() for path in paths]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _report_shut(uid, gid, real, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answers = pipe.read().ljust(len(real), bytes([_UNKNOWN]))
    os.waitpid(child, 0)
    return [_explain(path, shut) for path, shut in zip(real, answers, strict=True) if shut != _OPEN]


_OPEN = 255
_UNKNOWN = 254


def _report_shut(uid: int, gid: int, paths: list[Path], writing: int) -> NoReturn:
    """As the user: one byte a path, the index of its first part that shuts it off."""
    try:
        modes = [[_wanted(part, part == path) for part in _parts(path)] for path in paths]
        _drop(uid, gid)
        os.write(writing, bytes(_first_shut(_parts(path), wanted) for path, wanted in zip(paths, modes, strict=True)))
    finally:
        os._exit(0)


def _parts(path: Path) -> list[Path]:
    """A path's directories from the root on, and itself."""
    return [*reversed(path.parents), path]


def _wanted(part: Path, last: bool) -> int:
    """What the user needs of a part: to pass through a directory; to read, and where it is a directory list, the last."""
    if not last:
        return os.X_OK
    return os.R_OK | os.X_OK if part.is_dir() else os.R_OK


def _first_shut(parts: list[Path], wanted: list[int]) -> int:
    found = (index for index, (part, mode) in enumerate(zip(parts, wanted, strict=True)) if not os.access(part, mode))
    return next(found, _OPEN)


def _explain(path: Path, shut: int) -> Unreachable:
    """What root sees of the part that shuts a path off."""
    if not path.exists():
        return Unreachable(path, "absent", f"{path} does not exist; make it, or run scripts/setup")
    parts = _parts(path)
    part = parts[shut] if shut < len(parts) else path
    status = part.stat()
    mode = f"{stat.filemode(status.st_mode)} uid {status.st_uid} ({part})"
    need = "r" if not part.is_dir() else "rx" if part == path else "x"
    return Unreachable(path, mode, f"chmod o+{need} {part}, or move what lies there to a public place")
