"""Signals of a process that belong to its child: held back over a fork, then passed on, and none ever lost.

Traps:
- A signal between the fork and our handlers would end one side alone, or be swallowed (CPython drops what a handler raises
  inside `os.fork`). So they are held back until both sides are ready for them.
- A handler of Python's runs between two instructions of Python's: a signal that comes just before a system call that waits
  would be seen after it. So every wait also watches the descriptor that signals write to.

Source: signal(7), `signal.set_wakeup_fd` of Python's documentation.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Set
from contextlib import suppress
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PIPE_BYTES = 4096


def hold_back() -> Set[int]:
    """Let signals wait from now on; returns what `release` needs."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)


def release(mask: Set[int]) -> None:
    """Have what waited, and go on as before `hold_back`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def wait_readable(fds: Iterable[int]) -> set[int]:
    """Wait until at least one descriptor can be read, or has ended, and return those."""
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    return {fd for fd, _ in waiting.poll()}


class SignalRelay:
    """Passes signals on to a child, from those that were held back on, until it is ended. One in a process."""

    def __init__(self, child: int) -> None:
        self._child = child
        self._signalled, self._signals = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        for number in FORWARDED:
            signal.signal(number, self._forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)

    def wait(self, fds: Iterable[int]) -> set[int]:
        """`wait_readable`, in which signals are passed on."""
        wanted = set(fds)
        while True:
            readable = wait_readable({*wanted, self._signalled})
            if self._signalled in readable:
                os.read(self._signalled, _PIPE_BYTES)
            if readable & wanted:
                return readable & wanted

    def end(self) -> None:
        """Ignore signals: the child has ended, and its number may become another's."""
        for number in FORWARDED:
            signal.signal(number, signal.SIG_IGN)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._child, number)  # our child: its number is not another's before we have waited for it
