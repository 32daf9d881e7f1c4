"""Security groups on a running platform: what one app's VM may ask another's, by `swg groups`, while both run.

Each time a program in the guest of the one asks for the other by its name, and gets its page or nothing.
"""

from __future__ import annotations

import http.client
import re
import tomllib
from collections.abc import Iterator

import pytest

from examples.demo.images import hello
from examples.demo.platform import Platform
from tests.real.platform_harness import fetch, instances, scratch_platform, until

pytestmark = [pytest.mark.real, pytest.mark.nightly]

ASKER, TARGET = "shop", "store"
METRICS = ("transmit_bytes", "transmit_packets", "receive_bytes", "receive_packets")
ASK = f"""
import http.client, socket
for family in (socket.AF_INET, socket.AF_INET6):
    [place, *_] = socket.getaddrinfo("{TARGET}.internal", 8080, family, socket.SOCK_STREAM)
    asking = http.client.HTTPConnection(place[4][0], 8080, timeout=2)
    try:
        asking.request("GET", "/healthz")
        print("told", asking.getresponse().status)
    except ConnectionRefusedError:
        print("nobody there")
    except TimeoutError:
        print("nothing")
"""
"""What is closed is dropped, so it takes as long as the asker's patience. A name that is not found is a failure."""
OPEN, CLOSED = ["told 200", "nobody there"], ["nothing", "nothing"]
"""By IPv4, and by IPv6, where the app does not listen: its VM says so itself, if it is asked."""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with scratch_platform() as made:
        made.swg("images", "load", "hello:v1", str(hello("v1")))
        for app in (ASKER, TARGET):
            made.swg("apps", "create", app)
            made.swg("deploy", "-a", app, "-i", "hello:v1", "--port", "8080", "--check-path", "/healthz")
        yield made


def asked(platform: Platform) -> list[str]:
    """What the one app's VM got of the other's."""
    return platform.swg("exec", "-a", ASKER, "--", "python3", "-c", ASK).splitlines()


def counted(platform: Platform, metric: str, app: str) -> int:
    """A counter of an app's traffic, as Prometheus reads it; 0 before it is told."""
    config = tomllib.loads((platform.config_home / "shellwego" / "config.toml").read_text())
    asking = http.client.HTTPConnection("127.0.0.1", platform.api_port, timeout=30)
    try:
        token = config["contexts"][config["current"]]["token"]
        asking.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
        text = asking.getresponse().read().decode()
    finally:
        asking.close()
    found = re.search(rf'^shellwego_network_{metric}_total{{.*app="{app}"}} (\d+)$', text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_an_app_is_closed_opened_and_closed_again_to_another_while_both_run(platform: Platform) -> None:
    vms = {each["vm_id"] for app in (ASKER, TARGET) for each in instances(platform, app)}
    until(lambda: asked(platform) == OPEN, "in no group it takes anything of its project")
    for change, wanted in (
        (("create", "web"), OPEN),
        (("create", "database"), OPEN),
        (("attach", "database", TARGET), CLOSED),
        (("allow", "database", "group:web:8080"), CLOSED),
        (("attach", "web", ASKER), OPEN),
        (("deny", "database", "group:web:8080"), CLOSED),
        (("allow", "database", f"app:{ASKER}"), OPEN),
        (("detach", "web", ASKER), OPEN),
        (("deny", "database", f"app:{ASKER}"), CLOSED),
        (("detach", "database", TARGET), OPEN),
    ):
        platform.swg("groups", *change)
        until(lambda wanted=wanted: asked(platform) == wanted, f"{change}: {wanted}")
        assert fetch(platform, TARGET)[0] == 200, "the edge is not asked"
    assert {each["vm_id"] for app in (ASKER, TARGET) for each in instances(platform, app)} == vms, "without a deploy"


def test_what_they_sent_each_other_is_counted_for_prometheus(platform: Platform) -> None:
    before = {(metric, app): counted(platform, metric, app) for metric in METRICS for app in (ASKER, TARGET)}
    until(lambda: asked(platform) == OPEN, "they talk")
    for (metric, app), count in before.items():
        until(lambda m=metric, a=app, c=count: counted(platform, m, a) > c, f"{metric} of {app} has grown")
