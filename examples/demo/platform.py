"""One platform on this machine, driven as a user would: `swg up` in the background, the command line for the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from examples.demo.registry import free_port
from plasmavmc.host.names import installation_key

SWG = str(Path(sys.executable).with_name("swg"))
ENDS_S = 60.0
"""A platform ends within so long, its VMs with it."""


class CommandFailed(RuntimeError):
    """A command of the platform ended with another code than asked for."""

    def __init__(self, command: list[str], code: int, output: str) -> None:
        super().__init__(f"{' '.join(command)} ended with {code}:\n{output}")
        self.code = code
        self.output = output


class NotReady(RuntimeError):
    """What ran did not say in time that it is ready, and was ended."""

    def __init__(self, command: list[str], seconds: float, output: str) -> None:
        super().__init__(f"{' '.join(command)} was not ready within {seconds:g} s; it said:\n{output}")


@dataclass(slots=True)
class Platform:
    """`swg up` with its own data directory, ports and command-line configuration."""

    data_dir: Path
    config_home: Path
    http_port: int = field(default_factory=free_port)
    api_port: int = field(default_factory=free_port)
    extra: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """What each command is run by, such as `ip netns exec NAME`."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> str:
        """What the installation's names on the host carry."""
        return installation_key((self.data_dir / "installation").read_text().strip())

    @property
    def log(self) -> Path:
        return self.config_home / "up.log"

    def start(self, ready_within_s: float = 180.0) -> float:
        """Start it; returns the seconds until it said that it is ready.

        Raises:
            CommandFailed: it ended.
            NotReady: it was not ready in time.
        """
        self.config_home.mkdir(parents=True, exist_ok=True)
        command = [*self.prefix, SWG, "up", "--data-dir", str(self.data_dir), "--http-port", str(self.http_port)]
        command += ["--api-port", str(self.api_port), *self.extra]
        self.process, took = started(command, b"ready", self.log, self._environment(), ready_within_s)
        return took

    def stop(self, timeout_s: float = ENDS_S) -> int:
        """Ask it to end, and wait; returns its exit code."""
        code = end(self.process, timeout_s)
        self.process = None
        return code

    def kill(self) -> None:
        """End all its processes with -9; HAProxy and VMs, which are not of its session, live on."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "XDG_CONFIG_HOME": str(self.config_home), "NO_COLOR": "1", **self.environment}

    def swg(self, *arguments: str, code: int | None = 0, stdin: str = "", timeout_s: float = 400) -> str:
        """Run a command; returns its stdout. `code` None accepts any end.

        Raises:
            CommandFailed: it ended with another code.
        """
        command = [*self.prefix, SWG, *arguments]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self._environment(),
            input=stdin,
            timeout=timeout_s,
            check=False,
        )
        if code is not None and result.returncode != code:
            raise CommandFailed(command, result.returncode, result.stdout + result.stderr)
        return result.stdout if code == 0 else result.stdout + result.stderr

    def json(self, *arguments: str) -> Any:
        """Run a command with `--json`, and parse its document."""
        return json.loads(self.swg(*arguments, "--json"))

    def __enter__(self) -> Platform:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()


def started(
    command: list[str], marker: bytes, log: Path, environment: Mapping[str, str], within_s: float
) -> tuple[subprocess.Popen[bytes], float]:
    """Start a process that writes `marker` to its log once it is ready; returns it, and the seconds that it took.

    Raises:
        CommandFailed: it ended.
        NotReady: it was not ready in time.
    """
    began = time.monotonic()
    with log.open("ab") as output:
        mark = output.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    while marker not in log.read_bytes()[mark:]:
        if (code := process.poll()) is not None:
            raise CommandFailed(command, code, log.read_text()[-3000:])
        if time.monotonic() - began > within_s:
            end(process, ENDS_S)
            raise NotReady(command, within_s, log.read_text()[-3000:])
        time.sleep(0.02)
    return process, time.monotonic() - began


def end(process: subprocess.Popen[bytes] | None, timeout_s: float) -> int:
    """Ask a process to end, and wait; returns its exit code, 0 where there is none."""
    if process is None:
        return 0
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout_s)


def qemu_processes(key: str) -> dict[int, str]:
    """Living VMMs of the installation with this key: pid → the name they carry (`swg-<installation>-<vm>`)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if "qemu-system" in words[0] and state != "Z" and "-name" in words:
            name = words[words.index("-name") + 1]
            if name.startswith(f"swg-{key}-"):
                found[int(entry.name)] = name
    return found
