"""A registry on loopback: the distribution's `docker-registry`, with its data in a directory of ours."""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

CONFIG = """version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Registry:
    """Runs while its context is open."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.yml"
        config.write_text(CONFIG.format(root=self.directory / "data", port=self.port))
        output = (self.directory / "registry.log").open("wb")
        with output:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"docker-registry did not start: see {output.name}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def push(self, tar: Path, name: str) -> str:
        """Copy an OCI-layout tar into the registry; returns the reference to deploy."""
        reference = f"{self.address}/{name}"
        command = [
            "skopeo",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            f"oci-archive:{tar}",
            f"docker://{reference}",
        ]
        subprocess.run(command, check=True, capture_output=True)
        return reference

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
