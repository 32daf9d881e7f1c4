"""A host that joined, as a node or as an edge: its process in the background, and what is left where it is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from examples.cluster.network import Host
from examples.cluster.part import Part
from examples.demo.platform import SWG, CommandFailed, qemu_processes
from plasmavmc.host.names import installation_key

DEATH_S = 10.0


class Joined(Part):
    """A part whose key lies in `directory`, and all else in `data_dir`."""

    def __init__(self, kind: str, host: Host, root: Path, name: str, *flags: str) -> None:
        self.host = host
        self.name = name
        self.directory = root / f"{name}-key"
        self.data_dir = root / name
        words = (kind, "--dir", str(self.directory), "--data-dir", str(self.data_dir), *flags)
        super().__init__(words, b"This host is the", root / f"{name}.log", host.enter)

    @property
    def key(self) -> str:
        """What its names on the host carry."""
        return installation_key((self.data_dir / "installation").read_text().strip())

    def join(self, line: str) -> str:
        """Run the line that `join-token` printed, as an operator would on the host."""
        command = [*self.host.enter, SWG, *line.split()[1:], "--dir", str(self.directory)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise CommandFailed(command, done.returncode, done.stdout + done.stderr)
        return done.stdout


class JoinedNode(Joined):
    """A host that joined as a node."""

    def __init__(self, host: Host, root: Path, *flags: str) -> None:
        super().__init__("agent", host, root, host.name, *flags)

    def vmms(self) -> dict[int, str]:
        """Its living VMMs: pid → name."""
        return qemu_processes(self.key)

    def die(self) -> None:
        """All its processes end at once, as when its power goes.

        Raises:
            TimeoutError: some of them do not.
        """
        self.kill()
        deadline = time.monotonic() + DEATH_S
        while left := {*self.vmms(), *self.host.processes()}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: processes {sorted(left)} outlive SIGKILL by {DEATH_S:g} s")
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


class JoinedEdge(Joined):
    """A host that joined as an edge, beside a node of the same host."""

    def __init__(self, host: Host, root: Path, *flags: str) -> None:
        super().__init__("edge", host, root, f"{host.name}-edge", *flags)

    @property
    def admin_socket(self) -> Path:
        """Of its HAProxy."""
        return Path("/run/shellwego") / self.key / "edge" / "admin.sock"
