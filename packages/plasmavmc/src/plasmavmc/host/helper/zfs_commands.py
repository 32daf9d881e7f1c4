"""The program `zfs`, for what one order asks of it: any number of commands, within one deadline.

Theory. Who gave the order waits only so long, and takes a helper that does not answer then for one that hangs: the whole
platform would end, and begin again with the same order. So all commands of an order share their time, and where it is over
the order fails with an error that says so, and that it may be tried again.

Trap: a command whose disks do not answer cannot be killed. It is left behind, and may still do what it was told; it is
reaped when some later program is started.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from plasmavmc.errors import HostError, UnavailableError
from plasmavmc.host.helper.programs import check_program
from plasmavmc.host.run import PATH, find_program

ORDER_S = 50.0
"""Less than who gives orders waits (`client.REPLY_DEADLINE_S`), with time to kill."""
KILL_WAIT_S = 1.0
_BUSY = ("busy", "I/O error")
_BUSY_S, _LOOK_S = 10.0, 0.005
_AFTERWARDS = 0.2
"""Of its time, what an order keeps for its last command, if that has to be tried whatever became of those before."""

Argv = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ZfsCommands:
    """Those of one order, which begins when this is made."""

    ends_at: float
    """By the monotonic clock."""
    order_s: float

    @classmethod
    def within(cls, order_s: float = ORDER_S) -> ZfsCommands:
        """Of an order that begins now."""
        return cls(time.monotonic() + order_s, order_s)

    @property
    def first(self) -> ZfsCommands:
        """The same with less time, so that some is left for what has to be done afterwards."""
        return replace(self, ends_at=self.ends_at - self.order_s * _AFTERWARDS)

    def run(self, argv: Argv, stdout: int = subprocess.DEVNULL) -> bytes:
        """What a command says, where it is not written elsewhere.

        Raises:
            HostError: `missing-program`, `zfs-failed`, `helper-refused`.
            UnavailableError: `storage-slow`, the time is over; it may be tried again.
        """
        program = Path(find_program("zfs"))
        check_program(program, "the program zfs")
        left_s = self.ends_at - time.monotonic()
        if left_s <= 0:
            raise self._slow(argv, "was not begun")
        process = subprocess.Popen(
            [program, *argv],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
        )
        try:
            said, complaint = process.communicate(timeout=left_s)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise self._slow(argv, "did not end") from error
        if process.returncode != 0:
            details = complaint.decode(errors="replace").strip()[:500]
            raise HostError("zfs-failed", f"zfs {argv[0]} failed", details=details)
        return said or b""

    def told(self, argv: Argv) -> list[str]:
        """The lines of what a command tells."""
        return self.run(argv, subprocess.PIPE).decode(errors="replace").splitlines()

    def patiently(self, argv: Argv) -> None:
        """Run what finds a dataset busy that was just unmounted: the daemon of zfs-fuse hears of that after the kernel."""
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                self.run(argv)
            except HostError as error:
                if not any(words in error.details for words in _BUSY) or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)
            else:
                return

    def _slow(self, argv: Argv, what: str) -> UnavailableError:
        return UnavailableError(
            "storage-slow",
            f"zfs {argv[0]} {what} within the {self.order_s:g} s that an order of volumes may take",
            resolution="Try again; if it stays so, look with zpool status and zpool iostat.",
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and wait for its end where it comes."""
    process.kill()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILL_WAIT_S)
