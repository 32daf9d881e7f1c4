"""A canary and a release command with real guests and the real edge: the part of the requests that the canary gets, and
what a command did before anything of its release was rolled out."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

from examples.demo.images import hello
from examples.demo.load import Load
from examples.demo.platform import Platform
from examples.demo.registry import Registry
from tests.real.platform_harness import api, instances, scratch_platform, told, until

pytestmark = pytest.mark.real

APP = "shop"
UNHEALTHY = 8


def newest(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = api(platform, f"apps/{APP}/deployments?limit=1&sort=created_at:desc")["data"][0]
    return found


def test_a_release_command_comes_first_and_a_canary_gets_its_part_without_a_lost_request(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Registry(tmp_path_factory.mktemp("registry")) as registry, scratch_platform() as platform:
        first, second = (registry.push(hello(v), f"hello:{v}") for v in ("v1", "v2"))
        platform.swg("apps", "create", APP)
        platform.swg("deploy", "-a", APP, "-i", first, "--port", "8080", "--check-path", "/healthz")
        (old,) = instances(platform, APP)
        with Load(platform.http_port, f"{APP}.localhost", rate=40, connections=4) as load:
            failing = "sh -c 'echo migrating $SHELLWEGO_RELEASE; exit 3'"
            said = platform.swg("deploy", "-a", APP, "-i", second, "--release-command", failing, code=UNHEALTHY)
            assert "stage release_command: the release command failed: the workload ended with exit code 3" in said
            assert "  | migrating v2" in said
            assert [each["id"] for each in instances(platform, APP)] == [old["id"]]
            _follow_canary(platform, load, "sh -c 'echo migrated'", second)
        assert not load.journal.failed, told(load.journal.failed)
        until(lambda: len(instances(platform, APP)) == 1, "only the new instance is left")
        assert instances(platform, APP)[0]["id"] != old["id"]


def _follow_canary(platform: Platform, load: Load, command: str, image: str) -> None:
    """Deploy a canary of a fifth; count what each release answered while its step held."""
    words = ("-i", image, "--release-command", command, "--canary", "20,100", "--canary-pause", "8")
    deploying = threading.Thread(target=platform.swg, args=("deploy", "-a", APP, *words))
    deploying.start()
    until(lambda: newest(platform)["canary"] and newest(platform)["canary"]["holds_since"], "the canary is served")
    begin = len(load.journal.samples)
    until(lambda: newest(platform)["canary"]["step"] == 1, "the canary is promoted")
    held = Counter(sample.version for sample in load.journal.samples[begin:])
    deploying.join(120)
    done = newest(platform)
    assert (done["state"], done["release_command"]) == ("succeeded", ["sh", "-c", "echo migrated"])
    stages = [each["stage"] for each in done["stages"]]
    assert stages.index("release_command") < stages.index("starting") < stages.index("shifting")
    assert set(held) == {"v1", "v2"}
    assert 0.08 <= held["v2"] / held.total() <= 0.35, held
