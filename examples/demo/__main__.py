"""`scripts/demo`: the main job on this machine, told as it goes.

scripts/demo            leaves the platform up
scripts/demo --check    asserts each step, tears everything down, and its exit code tells
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from examples.demo.images import hello
from examples.demo.leftovers import of_installation
from examples.demo.load import Load
from examples.demo.platform import CommandFailed, NotReady, Platform, qemu_processes
from examples.demo.registry import Registry

APP = "hello"
HOST = "hello.localhost"


class StoryError(RuntimeError):
    """A step did not show what it should."""


def tell(text: str) -> None:
    print(f"\n▸ {text}", flush=True)


def show(text: str) -> None:
    for line in text.rstrip().splitlines():
        print(f"    {line}", flush=True)


def expect(condition: bool, text: str) -> None:
    """A claim of the demonstration; false ends it."""
    if not condition:
        raise StoryError(text)
    show(f"✓ {text}")


def fetch(port: int, path: str = "/", host: str = HOST) -> tuple[int, str]:
    """One request through the edge."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Poll until it holds; returns how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise StoryError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - began


class Story:
    """The steps, in order."""

    def __init__(self, platform: Platform, registry: Registry) -> None:
        self.platform = platform
        self.registry = registry

    def tell_all(self) -> None:
        self.deploy_first()
        self.deploy_second_under_load()
        self.scale()
        self.logs_and_exec()
        self.kill_a_vm()

    def deploy_first(self) -> None:
        tell("push hello:v1 to a registry on loopback, create the app, deploy")
        reference = self.registry.push(hello("v1"), "hello:v1")
        show(self.platform.swg("apps", "create", APP))
        began = time.monotonic()
        show(self.platform.swg("deploy", "-a", APP, "-i", reference, "--port", "8080", "--check-path", "/healthz"))
        status, body = fetch(self.platform.http_port)
        show(f"http://{HOST}:{self.platform.http_port}/  →  {body.strip()}   ({time.monotonic() - began:.1f} s)")
        expect(status == 200 and "v1" in body, "the URL answers from v1")

    def deploy_second_under_load(self) -> None:
        tell("deploy v2 while 50 requests a second come in, half of them POSTs")
        reference = self.registry.push(hello("v2"), "hello:v2")
        with Load(self.platform.http_port, HOST) as load:
            show(self.platform.swg("deploy", "-a", APP, "-i", reference))
            time.sleep(1)
        journal = load.journal
        show(journal.summary())
        for sample in journal.failed[:5]:
            show(f"failed: {sample}")
        expect(not journal.failed, "no request failed")
        expect(set(journal.versions()) == {"v1", "v2"}, "both versions answered")
        expect("v2" in fetch(self.platform.http_port)[1], "v2 answers now")

    def scale(self) -> None:
        tell("scale to 3")
        show(self.platform.swg("scale", "-a", APP, "web=3"))
        answered: set[str] = set()
        wait_until(lambda: self._gather(answered) >= 3, 15, "answers from three microVMs")
        show(self.platform.swg("status", "-a", APP))
        expect(len(qemu_processes(self.platform.key)) >= 3, "three microVMs run")
        expect(len(answered) == 3, "requests are spread over the three instances")

    def _gather(self, answered: set[str]) -> int:
        """Ask once more; how many microVMs have answered so far."""
        answered.add(fetch(self.platform.http_port)[1].split(" on ")[-1])
        return len(answered)

    def logs_and_exec(self) -> None:
        tell("logs and exec")
        logs = self.platform.swg("logs", "-a", APP, "-n", "200")
        show("\n".join(logs.splitlines()[-5:]))
        expect("listens on 8080" in logs or "journal" in logs, "the app's output is there")
        output = self.platform.swg("exec", "-a", APP, "--", "/bin/sh", "-c", "echo from inside: $(uname -r); id -u")
        show(output)
        expect("from inside" in output, "a command ran inside the microVM")
        self.platform.swg("exec", "-a", APP, "--", "/bin/sh", "-c", "exit 7", code=7)
        expect(True, "exec passes the exit code (7)")

    def kill_a_vm(self) -> None:
        tell("kill one microVM with -9")
        before = qemu_processes(self.platform.key)
        victim = next(iter(before))
        os.kill(victim, signal.SIGKILL)
        took = wait_until(lambda: len(set(qemu_processes(self.platform.key)) - set(before)) >= 1, 60, "a new microVM")
        show(f"process {victim} was killed; a new microVM runs after {took:.1f} s")
        wait_until(lambda: self._healthy() >= 3, 60, "three healthy instances")
        expect(fetch(self.platform.http_port)[0] == 200, "the app serves with three healthy instances again")

    def _healthy(self) -> int:
        instances = self.platform.json("status", "-a", APP)["instances"]
        return sum(1 for instance in instances if instance["phase"] == "healthy")


def run_check() -> int:
    """All of it asserted in a scratch place, then torn down."""
    with tempfile.TemporaryDirectory(prefix="swg-demo-") as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        platform = Platform(root / "data", root / "config")
        code = 1
        try:
            with Registry(root / "registry") as registry:
                tell("start the platform")
                show(f"ready after {platform.start():.1f} s")
                Story(platform, registry).tell_all()
                code = 0
        except (StoryError, CommandFailed, NotReady) as error:
            print(f"\ndemo: FAILED: {error}", file=sys.stderr)
            print(f"--- {platform.log}\n{platform.log.read_text()[-6000:]}", file=sys.stderr)
        finally:
            tell("stop the platform")
            ended = platform.stop()
            show(f"it ended with exit code {ended}")
        left = of_installation(platform.data_dir)
    if left:
        print("demo: FAILED: left behind:\n  " + "\n  ".join(sorted(left)), file=sys.stderr)
    if ended != 0 or left:
        code = 1
    print("\ndemo: " + ("all steps passed, nothing is left behind" if code == 0 else "FAILED"), flush=True)
    return code


def run_live() -> int:
    """The same, and the platform stays up."""
    root = Path("/var/lib/shellwego-demo")
    root.mkdir(mode=0o755, exist_ok=True)
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    platform = Platform(root / "data", config_home, http_port=8088, api_port=7080)
    try:
        with Registry(root / "registry") as registry:
            tell("start the platform")
            show(f"ready after {platform.start():.1f} s")
            platform.swg("apps", "destroy", APP, "--yes", code=None)
            Story(platform, registry).tell_all()
    except (StoryError, CommandFailed, NotReady) as error:
        print(f"\ndemo: FAILED: {error}\nThe platform's own words are in {platform.log}", file=sys.stderr)
        platform.stop()
        return 1
    pid = platform.process.pid if platform.process else 0
    tell(f"the platform stays up (pid {pid}); try: curl -H 'Host: {HOST}' http://127.0.0.1:{platform.http_port}/")
    show(f"swg status -a {APP}   ·   swg logs -a {APP} -f   ·   stop it with: kill {pid}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="The main job on this machine.")
    parser.add_argument("--check", action="store_true", help="assert each step, then tear everything down")
    if os.geteuid() != 0:
        sys.exit("demo: the platform must be started as root: sudo scripts/demo")
    return run_check() if parser.parse_args().check else run_live()


if __name__ == "__main__":
    sys.exit(main())
