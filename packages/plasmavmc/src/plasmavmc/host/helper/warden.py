"""The program of the warden: kills VMs whose time is over, whoever else lives. See `fences`.

It is run by the bare interpreter as root, from its text (`-c`): nothing of ours is imported, so that it is small, and goes
on as it began whatever is installed meanwhile. It takes orders from nobody: each look reads what root wrote into a directory
of root's, one file a VM, and the table of leased uids.

The clock is that of the boot, which goes on while the host sleeps. Descriptor 3 is the lock that says a warden is there. It
is let go before the last look: who writes a fence and then finds the lock held has been seen.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import time

LOCK = 3
NO_PROCESS = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""As `host.processes` has it: nothing has the number any more, or a thread that leads no others."""
LOOK_S = 0.5
"""It looks at least so often, so a fence that is written later than another is in force that soon, whenever it ends."""


def read(path: str) -> str:
    """A small file; empty where it has just gone."""
    try:
        with open(path, encoding="latin-1") as file:  # noqa: PTH123 - nothing that costs is imported here
            return file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return ""


def fences(directory: str) -> dict[str, float]:
    """VMs by their keys, and when each ends."""
    try:
        keys = [key for key in os.listdir(directory) if not key.endswith(".new")]  # noqa: PTH208
    except FileNotFoundError:  # the installation has ended
        return {}
    told = {key: read(f"{directory}/{key}") for key in keys}
    return {key: float(moment) for key, moment in told.items() if moment}


def uids_of(keys: set[str], leases: str, installation: str) -> set[str]:
    """What these VMs run as."""
    named = {f"{installation} {key}" for key in keys}
    return {uid for uid in os.listdir(leases) if read(f"{leases}/{uid}").strip() in named}  # noqa: PTH208


def is_of(pid: str, uids: set[str]) -> bool:
    """Whether a process is one of these users, by its real uid."""
    lines = [line for line in read(f"/proc/{pid}/status").splitlines() if line.startswith("Uid:")]
    return bool(lines) and lines[0].split()[1] in uids


def kill(uids: set[str]) -> None:
    """End all processes of these users. What is looked at is what is held, so that it is no later process of the number."""
    for pid in os.listdir("/proc"):  # noqa: PTH208
        if not pid.isdecimal() or not is_of(pid, uids):
            continue
        try:
            held = os.pidfd_open(int(pid))
        except OSError as error:
            if error.errno in NO_PROCESS:
                continue
            raise
        try:
            if is_of(pid, uids):
                signal.pidfd_send_signal(held, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(held)


def watch(directory: str, leases: str, installation: str) -> None:
    """Until there is no fence any more."""
    while True:
        now, known = time.clock_gettime(time.CLOCK_BOOTTIME), fences(directory)
        over = {key for key, moment in known.items() if moment <= now}
        if over:
            kill(uids_of(over, leases, installation))
        if not known and not again(directory):
            return
        time.sleep(min([LOOK_S, *(moment - now for moment in known.values() if moment > now)]))


def again(directory: str) -> bool:
    """Whether a fence has come just now, and no other warden with it."""
    fcntl.flock(LOCK, fcntl.LOCK_UN)
    if not fences(directory):
        return False
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    watch(*sys.argv[1:])
