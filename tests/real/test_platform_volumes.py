"""A volume on a running platform: written by one release, read by the next, grown in use, kept, copied and put back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from examples.demo.images import hello
from examples.demo.platform import Platform
from tests.real.platform_harness import kill_platform, scratch_platform, until

pytestmark = pytest.mark.real

APP = "shop"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with scratch_platform() as made:
        made.swg("images", "load", "hello:v1", str(hello("v1")))
        made.swg("images", "load", "hello:v2", str(hello("v2")))
        made.swg("apps", "create", APP)
        made.swg("volumes", "create", "data", "--size", "64m")
        made.swg("volumes", "attach", "data", "-a", APP, "--path", "/data")
        yield made


def python(platform: Platform, script: str) -> str:
    """What a script prints in the app's VM."""
    return platform.swg("exec", "-a", APP, "--", "python3", "-c", script).strip()


def shown(platform: Platform, *how: str) -> Any:
    return json.loads(platform.swg("volumes", *how, "--json"))


def write(platform: Platform, text: str) -> None:
    python(platform, f"import os; f = open('/data/orders', 'w'); f.write({text!r}); f.flush(); os.fsync(f.fileno())")


def read(platform: Platform) -> str:
    return python(platform, "print(open('/data/orders').read())")


def test_what_is_written_outlives_releases_grows_and_comes_back(platform: Platform) -> None:
    platform.swg("deploy", "-a", APP, "-i", "hello:v1", "--port", "8080", "--check-path", "/healthz")
    write(platform, "first")
    platform.swg("deploy", "-a", APP, "-i", "hello:v2")
    assert read(platform) == "first"

    platform.swg("volumes", "resize", "data", "128m")
    room = "import os; s = os.statvfs('/data'); print(s.f_blocks * s.f_frsize >> 20)"
    until(lambda: int(python(platform, room)) > 90, "the guest's file system grew")

    snapshot = shown(platform, "snapshot", "data", "--freeze")["id"]
    write(platform, "second")
    assert platform.process is not None
    kill_platform(platform)
    platform.start()
    assert read(platform) == "second"

    platform.swg("volumes", "restore", "data", snapshot, "--to", "copy")
    assert shown(platform, "show", "copy")["state"] == "available"
    platform.swg("apps", "stop", APP)
    until(lambda: shown(platform, "show", "data")["state"] == "available", "the volume is free")
    platform.swg("volumes", "restore", "data", snapshot, "-y")
    platform.swg("apps", "start", APP)
    until(lambda: shown(platform, "show", "data")["state"] == "attached", "the app has it again")
    until(lambda: '"phase": "healthy"' in platform.swg("vms", "ls", "--json"), "it serves")
    assert read(platform) == "first"
