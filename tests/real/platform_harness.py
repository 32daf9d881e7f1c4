"""One running platform under test: a demo's `Platform` with eyes on its host, and the sample app deployed to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from examples.demo.leftovers import of_installation
from examples.demo.load import Sample
from examples.demo.platform import Platform, qemu_processes
from plasmavmc.host.helper.worker import is_worker_process
from plasmavmc.network.dns.keeper import MODULE as RESOLVER

T = TypeVar("T")
POLL_S = 0.05
REPOSITORY = "repository"
PATIENCE_S = 90.0
"""For what takes a boot; CPUs are emulated, and others may use the cores."""


def until(look: Callable[[], T], what: str, *, within_s: float = PATIENCE_S) -> T:
    """Poll until `look` gives something true, and return that."""
    deadline = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(POLL_S)
    return seen


def fetch(platform: Platform, app: str, path: str = "/", *, timeout_s: float = 30) -> tuple[int, str]:
    """One request through the edge."""
    connection = http.client.HTTPConnection("127.0.0.1", platform.http_port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Host": f"{app}.localhost"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def api(platform: Platform, path: str) -> Any:
    """One GET of the REST API as the administrator; cheaper than a command."""
    return done(platform, "GET", path)


def done(platform: Platform, method: str, path: str, body: Any = None) -> Any:
    """What the REST API answers to something that it does."""
    status, answer = ask(platform, method, path, body)
    assert 200 <= status < 300, f"{method} {path}: {status} {str(answer)[:300]}"
    return answer


def ask(platform: Platform, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request to the REST API as the administrator: status and document."""
    config = tomllib.loads((platform.config_home / "shellwego" / "config.toml").read_text())
    headers = {"Authorization": f"Bearer {config['contexts'][config['current']]['token']}"}
    content = None if body is None else json.dumps(body)
    connection = http.client.HTTPConnection("127.0.0.1", platform.api_port, timeout=30)
    try:
        connection.request(method, f"/v1/{path}", content, {**headers, "Content-Type": "application/json"})
        answer = connection.getresponse()
        told = answer.read()
        return answer.status, json.loads(told) if told else None
    finally:
        connection.close()


def instances(platform: Platform, app: str) -> list[dict[str, Any]]:
    """What should serve the app, as the API tells it; those on their way out are left out."""
    listed: list[dict[str, Any]] = api(platform, f"apps/{app}/instances?limit=100")["data"]
    return [each for each in listed if each["desired"] == "serve"]


def healthy(platform: Platform, app: str, count: int) -> bool:
    """Whether exactly so many instances should serve, and all do."""
    phases = [each["phase"] for each in instances(platform, app)]
    return phases == ["healthy"] * count


def log_numbers(platform: Platform, app: str, word: str, *, instance: str = "") -> list[int]:
    """The numbers that an app wrote after a word at the start of a line, in the order of its log."""
    chosen = f"&instance={instance}" if instance else ""
    data = api(platform, f"apps/{app}/logs?tail=10000{chosen}")["data"]
    return [int(found[1]) for line in data if (found := re.match(rf"{word} (\d+)", line["text"]))]


def told(samples: Sequence[Sample]) -> str:
    """A few failed requests, one a line."""
    return "\n".join(str(sample) for sample in samples[:5])


def arguments_of(pid: int) -> list[str]:
    """A process's command line; empty for one that has ended, a zombie too."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def parent_of(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def haproxy_master(platform: Platform) -> int | None:
    """The pid of this platform's HAProxy; None while there is none."""
    mark = f"/run/shellwego/{platform.key}/edge/haproxy.cfg"
    ours = {pid for pid in pids() if mark in (words := arguments_of(pid)) and Path(words[0]).name == "haproxy"}
    with suppress(OSError):
        return next((pid for pid in ours if parent_of(pid) not in ours), None)
    return None


def platform_processes(platform: Platform) -> list[int]:
    """Root's helper and all that descends from it, but VMMs, HAProxy and the resolver."""
    assert platform.process is not None
    found = [platform.process.pid]
    for pid in found:
        with suppress(OSError):
            tasks = (Path("/proc") / str(pid) / "task").iterdir()
            children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
            found += [child for child in children if not _outlives(child)]
    return found


def _outlives(pid: int) -> bool:
    words = arguments_of(pid)
    return bool(words) and (
        Path(words[0]).name == "haproxy"
        or "qemu-system" in words[0]
        or is_worker_process(tuple(words))
        or RESOLVER in words
    )


def kill_platform(platform: Platform, *, only: int | None = None) -> None:
    """SIGKILL for every process of the platform but VMMs, HAProxy and the resolver, at once.

    With `only`, for the one at this place (0: root's helper, 1: the unprivileged rest); the others must end by themselves.
    """
    assert platform.process is not None
    present = platform_processes(platform)
    for pid in present if only is None else [present[only]]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for_end(platform, present)


def wait_for_end(platform: Platform, present: Sequence[int]) -> None:
    """Wait for the end of a platform that was killed, with all of these processes of it."""
    assert platform.process is not None
    platform.process.wait(10)
    platform.process = None
    until(
        lambda: not any(arguments_of(pid) for pid in present), "all processes of the platform have ended", within_s=10
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a restart of the platform must not change."""

    vmms: dict[int, str]
    haproxy: int | None
    instances: dict[str, tuple[str, int]]
    """Instance id → VM id and attempt, of every app asked for."""
    node: str
    epoch: int


def snapshot(platform: Platform, apps: Sequence[str]) -> Snapshot:
    (node,) = api(platform, "nodes")["data"]
    found = {each["id"]: (each["vm_id"], each["attempt"]) for app in apps for each in instances(platform, app)}
    return Snapshot(qemu_processes(platform.key), haproxy_master(platform), found, node["id"], node["epoch"])


@contextmanager
def scratch_platform(*extra: str, prefix: tuple[str, ...] = (), repository: bool = False) -> Iterator[Platform]:
    """A platform with directories of its own, started; nothing of it is left afterwards. With `repository` one of them is
    for backups: `REPOSITORY`, beside its data directory."""
    with tempfile.TemporaryDirectory(prefix="swg-test-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        root.chmod(0o755)
        platform = Platform(root / "data", root / "config", extra=extra, prefix=prefix)
        if repository:
            (root / REPOSITORY).mkdir()
            (root / REPOSITORY).chmod(0o777)
            platform.environment = {"SHELLWEGO_BACKUPS_URL": (root / REPOSITORY).as_uri()}
        platform.start()
        try:
            yield platform
        except BaseException:
            print(platform.log.read_text()[-8000:])
            raise
        finally:
            take_down(platform)


def take_down(platform: Platform) -> None:
    """Stop it with all its VMs, also where it was killed or told to keep them; nothing may be left."""
    platform.extra = tuple(flag for flag in platform.extra if flag != "--keep-vms")
    if platform.process is not None and platform.process.poll() is None:
        platform.stop()
    if of_installation(platform.data_dir):
        platform.start()
        platform.stop()
    left = of_installation(platform.data_dir)
    assert not left, f"left behind: {sorted(left)}"
