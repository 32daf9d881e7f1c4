"""A host that joined: `swg agent` in the background, and what can befall it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from examples.cluster.network import Host
from examples.demo.platform import SWG, CommandFailed, qemu_processes
from plasmavmc.host.names import installation_key

READY_S = 60.0


@dataclass(slots=True)
class JoinedNode:
    """Its key lies in `directory`, all else in `data_dir`."""

    host: Host
    root: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        return self.root / f"{self.host.name}-key"

    @property
    def data_dir(self) -> Path:
        return self.root / self.host.name

    @property
    def log(self) -> Path:
        return self.root / f"{self.host.name}.log"

    def join(self, line: str) -> str:
        """Run the line that `join-token` printed, as an operator would on the host."""
        command = [*self.host.enter, SWG, *line.split()[1:], "--dir", str(self.directory)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise CommandFailed(command, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def start(self) -> None:
        """Start the agent; returns when the platform knows it."""
        command = [*self.host.enter, SWG, "agent", "--dir", str(self.directory), "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as output:
            mark = output.tell()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        began = time.monotonic()
        while b"This host is the node" not in self.log.read_bytes()[mark:]:
            if self.process.poll() is not None or time.monotonic() - began > READY_S:
                raise CommandFailed(command, self.process.poll() or -1, self.log.read_text()[-3000:])
            time.sleep(0.05)

    def vmms(self) -> dict[int, str]:
        """Its living VMMs: pid → name."""
        return qemu_processes(installation_key((self.data_dir / "installation").read_text().strip()))

    def die(self) -> None:
        """All its processes end at once, as when its power goes."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        for pid in self.vmms():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> int:
        """Ask the agent to end, and wait; returns its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(90)
        self.process = None
        return code
