"""Debian's docker-registry on loopback, with `skopeo` as the tool that pushes: nothing of ours in between."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.contract.images_samples import Sample, entry, image, layer


class RegistryServer:
    """A registry with its own directory."""

    def __init__(self, directory: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.host = f"127.0.0.1:{port}"
        self._directory = directory
        self._process = process
        self._published: dict[str, Sample] = {}

    async def publish(self, name: str, *ports: int, content: bytes = b"") -> str:
        config = {"ExposedPorts": {f"{port}/tcp": {} for port in ports}}
        sample = image(layer(entry("content", content)), layer(entry("name", name.encode())), config=config)
        self.push(sample, name)
        return sample.digest

    def push(self, sample: Sample, name: str, *options: str) -> None:
        """Push an image as a tool of other people does."""
        layout = write_layout(self._directory / "layouts" / sample.digest.removeprefix("sha256:"), sample)
        target = f"docker://{self.host}/{name}"
        run("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", *options, f"oci:{layout}:image", target)
        self._published[name] = sample

    async def corrupt(self, name: str) -> None:
        digest = json.loads(self._published[name].manifest)["layers"][1]["digest"].removeprefix("sha256:")
        path = self._directory / "data/docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)

    async def go_away(self) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def registry_server(directory: Path) -> Iterator[RegistryServer]:
    """A fresh registry on a free port."""
    directory.mkdir(parents=True)
    port = free_port()
    config = directory / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    log = (directory / "log").open("wb")
    with log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    server = RegistryServer(directory, port, process)
    try:
        wait_for(f"http://{server.host}/v2/")
        yield server
    finally:
        server.stop()


def write_layout(directory: Path, sample: Sample) -> Path:
    """An OCI image layout as a directory, with the image under the name `image`."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest, data in sample.blobs.items():
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    entry_of_index = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": sample.digest,
        "size": len(sample.manifest),
        "annotations": {"org.opencontainers.image.ref.name": "image"},
    }
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry_of_index]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def run(*argv: str) -> str:
    """Run a tool to its end; its complaint is the test's."""
    completed = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(url: str, deadline_s: float = 20) -> None:
    """Poll until a server answers."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback server
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, f"{url} did not come up"
            time.sleep(0.05)
