"""What a running platform bears: killed VMMs, a killed platform, a killed HAProxy, debris under its names, a neighbour.

The tests share one platform and leave it as they found it: running, with every app healthy.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.images import hello
from examples.demo.leftovers import of_installation
from examples.demo.load import Load, Sample
from examples.demo.platform import Platform, qemu_processes
from examples.demo.registry import Registry
from tests.real.platform_harness import (
    api,
    fetch,
    haproxy_master,
    healthy,
    instances,
    kill_platform,
    parent_of,
    scratch_platform,
    snapshot,
    until,
)

pytestmark = pytest.mark.real

PAIR, CHATTY = "pair", "chatty"
APPS = (PAIR, CHATTY)
PORT = ("--port", "8080", "--check-path", "/healthz")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two instances of one app, one of another that writes 1 MB a second."""
    with Registry(tmp_path_factory.mktemp("registry")) as registry, scratch_platform() as made:
        image = registry.push(hello("v1"), "hello:v1")
        for app in APPS:
            made.swg("apps", "create", app)
        made.swg("deploy", "-a", PAIR, "-i", image, *PORT)
        made.swg("scale", "-a", PAIR, "web=2")
        made.swg("deploy", "-a", CHATTY, "-i", image, *PORT, "-e", "HELLO_CHATTER=1000000")
        yield made


def host_of(app: str) -> str:
    return f"{app}.localhost"


def lines(platform: Platform, app: str, word: str) -> list[int]:
    """The numbers that an app wrote after a word at the start of a line, in the order of its log."""
    data = api(platform, f"apps/{app}/logs?tail=10000")["data"]
    return [int(found[1]) for line in data if (found := re.match(rf"{word} (\d+)", line["text"]))]


def told(samples: list[Sample]) -> str:
    return "\n".join(str(sample) for sample in samples[:5])


def test_a_killed_vmm_is_noticed_within_3_s_and_replaced_by_itself(platform: Platform) -> None:
    """Its sibling serves on. What fails is in flight on the killed VM, or sent to it before its death is known."""
    before = {each["id"]: each for each in instances(platform, PAIR)}
    victim = next(iter(before.values()))
    vmms = qemu_processes(platform.key)
    with Load(platform.http_port, host_of(PAIR)) as load:
        time.sleep(1)
        (pid,) = (pid for pid, name in vmms.items() if name == vmm_name(platform, victim["vm_id"]))
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        until(lambda: noticed(platform, victim["id"]), "the killed VMM is noticed", within_s=3)
        seen = time.monotonic() - killed
        until(lambda: healthy(platform, PAIR, 2), "two healthy instances")
        took = time.monotonic() - killed
    after = {each["id"]: each for each in instances(platform, PAIR)}
    print(
        f"noticed after {seen:.2f} s, replaced after {took:.1f} s; {load.journal.summary()}\n{told(load.journal.failed)}"
    )
    assert after.keys() == before.keys()
    assert after[victim["id"]]["attempt"] == victim["attempt"] + 1
    assert len(load.journal.failed) <= 8, told(load.journal.failed)


def noticed(platform: Platform, instance_id: str) -> bool:
    return any(each["id"] == instance_id and each["phase"] != "healthy" for each in instances(platform, PAIR))


def vmm_name(platform: Platform, vm_id: str) -> str:
    from plasmavmc.types import vm_key

    return f"swg-{platform.key}-{vm_key(vm_id)}"


def test_a_killed_platform_interrupts_nobody_and_its_next_start_adopts_everything(platform: Platform) -> None:
    before = snapshot(platform, APPS)
    with Load(platform.http_port, host_of(PAIR)) as load:
        time.sleep(1)
        written = lines(platform, CHATTY, "chatter")[-1]
        kill_platform(platform)
        until_gone = time.monotonic() + 10
        while time.monotonic() < until_gone:
            assert fetch(platform, CHATTY)[0] == 200
            time.sleep(0.2)
        assert qemu_processes(platform.key) == before.vmms
        started = platform.start()
        until(lambda: healthy(platform, PAIR, 2) and healthy(platform, CHATTY, 1), "all instances healthy", within_s=10)
        adopted = snapshot(platform, APPS)
        time.sleep(1)
    print(f"ready again after {started:.1f} s; {load.journal.summary()}")
    assert not load.journal.failed, told(load.journal.failed)
    assert adopted == before
    assert "inside" in platform.swg("exec", "-a", PAIR, "--", "/bin/sh", "-c", "echo inside")
    journal = Counter(lines(platform, PAIR, "journal"))
    assert [serial for serial in load.journal.acknowledged if journal[serial] < 1] == []
    until(lambda: lines(platform, CHATTY, "chatter")[-1] > written, "the log goes on")
    numbers = lines(platform, CHATTY, "chatter")
    assert len(numbers) == len(set(numbers))
    assert numbers == sorted(numbers)
