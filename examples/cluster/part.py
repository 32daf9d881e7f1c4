"""One process of the platform in the background: `swg server`, `swg agent` or `swg edge`, and what can befall it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from examples.demo.platform import SWG, end, started

READY_S = 90.0


@dataclass(slots=True)
class Part:
    """`swg` with these words; it is ready once it says `marker`."""

    words: tuple[str, ...]
    marker: bytes
    log: Path
    prefix: tuple[str, ...] = ()
    """What it is run by, such as `nsenter --net=...`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; returns the seconds until it was ready.

        Raises:
            CommandFailed: it ended.
            NotReady: it was not ready in time.
        """
        command = [*self.prefix, SWG, *self.words]
        environment = {**os.environ, "NO_COLOR": "1", **self.environment}
        self.process, took = started(command, self.marker, self.log, environment, READY_S)
        return took

    def processes(self) -> list[int]:
        """Root's helper, and the process that it was split off: not VMs and HAProxy, which are to outlive them."""
        if self.process is None or self.process.poll() is not None:
            return []
        first, own = self.process.pid, _command(self.process.pid)
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *(pid for pid in map(int, children) if _command(pid) == own)]

    def signal(self, number: signal.Signals) -> None:
        """To all its processes."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End all its processes with -9."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self, timeout_s: float = 90.0) -> int:
        """Ask it to end, and wait; returns its exit code."""
        code = end(self.process, timeout_s)
        self.process = None
        return code


def _command(pid: int) -> bytes:
    """A process's command line; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
