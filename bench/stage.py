"""What the benchmarks of the whole platform stand on: one platform with one app, the smallest web server there is."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.floor.hand import get, until_200
from examples.demo.platform import Platform, qemu_processes
from examples.hello.build import scratch_image
from shellwego.cli.apps import LIVE
from shellwego.client.context import load
from shellwego.client.generated import AppCreate, Client, DeploymentCreate, DeploymentView, EnvBody, ScaleBody
from shellwego.client.uploads import load_image

APP, HOST, IMAGE = "bench", "bench.localhost", "httpd:v1"
COMMAND = ("/httpd",)
SOURCE = Path(__file__).parent / "floor" / "httpd.c"
_BOOT = re.compile(r"event='vm\.running'.*?boot_s=([0-9.]+)")


@dataclass(slots=True)
class Stage:
    """The platform, its client, and a directory of our own."""

    platform: Platform
    client: Client
    directory: Path

    def cold_start(self) -> float:
        """From the API's answer to the first 200 through the edge; the app is stopped again."""
        self.client.start_app(APP)
        began = time.monotonic()
        took = until_200("127.0.0.1", self.platform.http_port, HOST, began)
        self.stop()
        return took

    def stop(self) -> None:
        """Stop the app, and return when nothing of it runs and its end was taken note of.

        What the platform still clears away after an end is no part of the next start.
        """
        self.client.stop_app(APP)
        while qemu_processes(self.platform.key) or self._has_instances():
            time.sleep(0.02)

    def _has_instances(self) -> bool:
        return bool(self.client.list_instances(APP, phase=LIVE, limit=1).data)

    def deploy(self, number: int) -> float:
        """A warm deploy of the unchanged image with another variable: from the answer to its success."""
        began = time.monotonic()
        changed = self.client.change_env(APP, EnvBody(env={"ROUND": str(number)}))
        deployment = self._over(changed.deployment_id or "")
        if deployment.state != "succeeded":
            raise RuntimeError(f"deployment {deployment.state}: {deployment.reason}")
        return time.monotonic() - began

    def scale(self, count: int) -> None:
        """Run so many instances, and return when they are healthy."""
        self.client.scale_app(APP, ScaleBody(counts={"web": count}))
        deadline = time.monotonic() + 300
        while self.client.get_app(APP).running.get("web", 0) != count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not scaled to {count} in time")
            time.sleep(0.1)

    def boots(self) -> list[float]:
        """Seconds from the spawn of each VMM to its guest's ready, as the platform logged them."""
        return [float(match) for match in _BOOT.findall(self.platform.log.read_text())]

    def _over(self, deployment_id: str) -> DeploymentView:
        while True:
            deployment = self.client.wait_deployment(APP, deployment_id, timeout=20)
            if deployment.finished:
                return deployment


@contextmanager
def stage() -> Iterator[Stage]:
    """A platform with the app deployed once, so that image and disk are there."""
    with tempfile.TemporaryDirectory(prefix="swg-bench-") as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        binary = directory / "httpd"
        subprocess.run(["musl-gcc", "-static", "-O2", "-s", "-o", str(binary), str(SOURCE)], check=True)
        tar = scratch_image(binary, directory / "httpd.tar", IMAGE)
        with Platform(directory / "data", directory / "config") as platform:
            context = load(directory / "config" / "shellwego" / "config.toml").get()
            if context is None:
                sys.exit("bench: the platform wrote no context")
            client = Client(context.api_url, context.token)
            with tar.open("rb") as stream:
                load_image(client, stream, name=IMAGE)
            client.create_app(AppCreate(name=APP))
            found = Stage(platform, client, directory)
            first = client.create_deployment(APP, DeploymentCreate(image=IMAGE, port=8080))
            if found._over(first.id).state != "succeeded":
                sys.exit(f"bench: the first deploy failed; see {platform.log}")
            if not get("127.0.0.1", platform.http_port, HOST):
                sys.exit("bench: the app does not answer")
            yield found
