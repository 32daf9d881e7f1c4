"""What a platform bears for longer: deploys in a row under load, a platform that is away, a host without a way out."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.demo.images import hello
from examples.demo.load import Load
from examples.demo.platform import Platform, qemu_processes
from examples.demo.registry import Registry
from tests.real.platform_harness import (
    fetch,
    healthy,
    instances,
    kill_platform,
    log_numbers,
    scratch_platform,
    snapshot,
    told,
    until,
)

pytestmark = pytest.mark.real

APP = "hello"
PORT = ("--port", "8080", "--check-path", "/healthz")
SLOW_S = 10
AWAY_S = 75


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@contextmanager
def slow_request(platform: Platform, app: str) -> Iterator[None]:
    """A request that takes 10 s is under way, and must be answered."""
    answers: list[tuple[int, str]] = []

    def ask() -> None:
        answers.append(fetch(platform, app, f"/slow?seconds={SLOW_S}", timeout_s=120))

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    thread.join(150)
    assert [status for status, _ in answers] == [200], answers


def executions(platform: Platform, seen: set[str]) -> Counter[int]:
    """How often each request was executed, as the logs of these instances tell. A log comes a moment after its answers."""
    return Counter(number for id_ in seen for number in log_numbers(platform, APP, "journal", instance=id_))


def deploy_under_load(platform: Platform, images: list[str], count: int) -> None:
    """So many deploys in a row, each of another release; every request is answered, every POST executed once."""
    seen = {each["id"] for each in instances(platform, APP)}
    with Load(platform.http_port, f"{APP}.localhost") as load:
        for number in range(count):
            with slow_request(platform, APP):
                time.sleep(0.2)
                platform.swg("deploy", "-a", APP, "-i", images[number % len(images)])
            seen |= {each["id"] for each in instances(platform, APP)}
    journal = load.journal
    print(f"{count} deploys: {journal.summary()}; answered by {dict(journal.versions())}")
    assert not journal.failed, told(journal.failed)
    acknowledged = set(journal.acknowledged)
    until(lambda: acknowledged <= executions(platform, seen).keys(), "what was acknowledged stands in the app's log")
    executed = executions(platform, seen)
    assert [number for number, times in executed.items() if times > 1] == [], "executed twice"
    assert len(seen) == count + 1
    assert set(journal.versions()) == {"v1", "v2"}


@contextmanager
def deployed(registry: Registry) -> Iterator[tuple[Platform, list[str]]]:
    """A platform with one instance of v1; and the images to deploy next, in turn."""
    with scratch_platform() as platform:
        v1, v2 = (registry.push(hello(version), f"hello:{version}") for version in ("v1", "v2"))
        platform.swg("apps", "create", APP)
        platform.swg("deploy", "-a", APP, "-i", v1, *PORT)
        yield platform, [v2, v1]


def test_two_deploys_in_a_row_fail_no_request_and_execute_each_once(registry: Registry) -> None:
    with deployed(registry) as (platform, images):
        deploy_under_load(platform, images, 2)


@pytest.mark.nightly
def test_20_deploys_in_a_row_fail_no_request_and_execute_each_once(registry: Registry) -> None:
    with deployed(registry) as (platform, images):
        deploy_under_load(platform, images, 20)


@pytest.mark.nightly
def test_apps_serve_on_for_more_than_a_minute_without_the_platform(registry: Registry) -> None:
    """The app writes 1 MB a second of logs meanwhile, which nobody takes."""
    with scratch_platform() as platform:
        platform.swg("apps", "create", APP)
        image = registry.push(hello("v1"), "hello:v1")
        platform.swg("deploy", "-a", APP, "-i", image, *PORT, "-e", "HELLO_CHATTER=1000000")
        before = snapshot(platform, [APP])
        with Load(platform.http_port, f"{APP}.localhost") as load:
            kill_platform(platform)
            time.sleep(AWAY_S)
            assert qemu_processes(platform.key) == before.vmms
            platform.start()
            until(lambda: healthy(platform, APP, 1), "the app is healthy", within_s=10)
        print(f"away for {AWAY_S} s: {load.journal.summary()}")
        assert not load.journal.failed, told(load.journal.failed)
        assert snapshot(platform, [APP]) == before
        numbers = log_numbers(platform, APP, "chatter")
        assert numbers == sorted(set(numbers))


@contextmanager
def namespace_without_a_way_out() -> Iterator[tuple[str, ...]]:
    """A network namespace with loopback alone; gives the words to run a command in it. /sys is mounted anew in there."""
    name = "swgtest-no-way-out"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield ("ip", "netns", "exec", name)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_a_host_without_network_and_without_cgroups_works_and_says_what_it_lacks() -> None:
    with namespace_without_a_way_out() as inside:
        with scratch_platform(prefix=inside) as platform:
            (node,) = platform.json("nodes", "ls")
            assert node["confinement"] == "rlimits"
            assert any("no cgroups" in warning for warning in node["warnings"])
            platform.swg("images", "load", "hello", str(hello("v1")))
            platform.swg("apps", "create", APP)
            platform.swg("deploy", "-a", APP, "-i", "hello", *PORT)
            url = f"http://127.0.0.1:{platform.http_port}/"
            asked = [*inside, "curl", "-sS", "-H", f"Host: {APP}.localhost", url]
            assert "v1" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout
            assert "inside" in platform.swg("exec", "-a", APP, "--", "/bin/sh", "-c", "echo inside")
        links = subprocess.run([*inside, "ls", "/sys/class/net"], capture_output=True, text=True, check=True).stdout
        assert links.split() == ["lo"]


@pytest.mark.nightly
def test_the_demonstration_runs_without_a_way_out() -> None:
    with namespace_without_a_way_out() as inside:
        began = time.monotonic()
        command = [*inside, sys.executable, "-m", "examples.demo", "--check"]
        root = Path(__file__).parents[2]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=600)
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        assert time.monotonic() - began <= 180
