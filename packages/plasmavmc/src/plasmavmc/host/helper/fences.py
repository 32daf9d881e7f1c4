"""Fences: moments at which VMs end, whoever else lives then.

Theory. A VM that has a volume may have to end before somebody else begins with a copy of it, on a node that cannot be
reached from there. So whoever runs it says until when it may run, and says so again and again; where that stays out, for
whatever reason, the VM is killed at the moment that was said last. Nothing that may be stopped together with the one who
says it can be relied on for that: not the unprivileged side (it may be killed, or stand still), and not this helper, which
ends with it and does one thing at a time. So the kill is the business of a process of its own, the warden (`warden`): one an
installation, there while there are fences, in a session of its own, as VMs are.

A fence is a file named by its VM's key, in a directory that only root can write; it holds the moment, by the clock of the
boot, which no clock step moves and a sleep of the host does not stop. Each fence that is written sees to it that a warden
is there, so one that was killed is replaced at the next. A fence is written before its VM begins, and goes with its uid.

A warden that could not become one says so through a pipe that its execve closes, and one that has the lock lives: so nobody
takes a fence for kept that nobody keeps.

What is over stays over: as long as such a VM has a process its fence cannot be moved, and none begins under it.

Source: clock_getres(2), flock(2), pidfd_send_signal(2).
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from plasmavmc.errors import HostError
from plasmavmc.host.helper import spawn

_DIRECTORY = "fences"
_ALONE = ("-I", "-S", "-B", "-c")
_PROGRAM = Path(__file__).with_name("warden.py").read_text()


def fenced(key: str) -> HostError:
    """A VM's time is over."""
    return HostError("fenced", f"the time that VM {key} had was over", resolution="Start another one.")


@dataclass(frozen=True, slots=True)
class Fences:
    """Those of one installation, in the host's run directory."""

    run_root: Path
    installation: str

    @property
    def _directory(self) -> Path:
        return self.run_root / _DIRECTORY / self.installation

    @property
    def _lock(self) -> Path:
        return self.run_root / _DIRECTORY / f"{self.installation}.lock"

    def set(self, key: str, until: float) -> None:
        """VM `key` ends at this moment of the monotonic clock. There is a warden when this returns.

        Raises:
            HostError: `no-warden`, none could be started. The moment is written down for the next one.
        """
        moment = until - time.monotonic() + _boot_time()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._directory / f"{key}.new"
        fresh.write_text(f"{moment:.6f}\n")
        fresh.replace(self._directory / key)
        self._ensure_warden()

    def lift(self, key: str) -> None:
        """VM `key` is not fenced any more, or has ended."""
        (self._directory / key).unlink(missing_ok=True)

    def is_over(self, key: str) -> bool:
        """Whether the time of VM `key` is."""
        try:
            return float((self._directory / key).read_text()) <= _boot_time()
        except FileNotFoundError:
            return False

    def keep(self, keys: Set[str]) -> None:
        """Remove all fences but those of these VMs."""
        with suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                if path.name not in keys:
                    path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Nothing of them is left, when the warden has seen that."""
        self.keep(frozenset())
        with suppress(FileNotFoundError):
            self._directory.rmdir()
        self._lock.unlink(missing_ok=True)

    def _ensure_warden(self) -> None:
        """Start one where nobody holds its lock, which it inherits."""
        with self._locked() as lock:
            if lock is None:
                return
            complaint = self._start(lock)
        if complaint:
            raise _no_warden(complaint)
        with self._locked() as lock:
            if lock is not None:
                raise _no_warden("it ended at once")

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The warden's lock; None where one has it. Who inherits it has it on."""
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
        finally:
            os.close(lock)

    def _start(self, lock: int) -> str:
        """What kept it from being the warden; empty: nothing."""
        trouble, trouble_end = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(trouble, "rb") as pipe:
            try:
                child = os.fork()
                if child == 0:
                    self._be_warden(lock, trouble_end)
            finally:
                os.close(trouble_end)
            message = pipe.read()
        os.waitpid(child, 0)
        return message.decode(errors="replace")

    def _be_warden(self, lock: int, trouble: int) -> NoReturn:
        """In a child of a child, so that init reaps it and the helper waits for nothing but its start."""
        try:
            if os.fork() == 0:
                trouble = spawn.above_targets(trouble)
                null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
                spawn.place_descriptors((lock,), null)
                spawn.confine((), None, 0o077, {})
                with suppress(OSError):
                    Path("/proc/self/oom_score_adj").write_text("-1000")
                told = (str(self._directory), str(self.run_root / "uids"), self.installation)
                spawn.run((str(Path(sys.executable).resolve()), *_ALONE, _PROGRAM, *told))
        except BaseException as error:  # noqa: BLE001 - nothing of the helper may run on in the child
            os.write(trouble, spawn.complaint(error))
        finally:
            os._exit(0)


def _no_warden(why: str) -> HostError:
    return HostError(
        "no-warden",
        f"nobody would end VMs whose time is over: the warden was not started: {why}",
        resolution="See that the host has processes and memory left, and this Python is where it was.",
    )


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
