"""Deploys on a running platform: whatever is wrong with an image, the reason is told and the old release goes on serving;
and any image with a server in it runs as its own configuration says.

One app serves from `v1` all the time, under load; each test of a failure deploys something broken over it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from examples.demo.images import hello
from examples.demo.load import Load
from examples.demo.platform import SWG, CommandFailed, Platform
from examples.demo.registry import Registry
from tests.contract.images_samples import Sample, entry, image, layer, oci_layout
from tests.real.platform_harness import api, fetch, scratch_platform, told, until

pytestmark = pytest.mark.real

APP = "shop"
CHECK = ("--check-path", "/healthz")
UNHEALTHY, NOT_FOUND, USAGE = 8, 4, 2
SLACK_S = 5.0
"""How much later than its `--wait-timeout` a deploy may end."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def platform(registry: Registry) -> Iterator[Platform]:
    with scratch_platform() as made:
        made.swg("apps", "create", APP)
        made.swg("deploy", "-a", APP, "-i", registry.push(hello("v1"), "hello:v1"), "--port", "8080", *CHECK)
        yield made


@pytest.fixture
def shop(platform: Platform) -> Iterator[Platform]:
    """The platform, whose app must go on serving `v1`, by the same instance, without one failed request."""
    (before,) = living(platform, APP)
    with Load(platform.http_port, f"{APP}.localhost", rate=20, connections=4) as load:
        yield platform
    journal = load.journal
    assert not journal.failed, told(journal.failed)
    assert set(journal.versions()) == {"v1"}
    until(lambda: len(living(platform, APP)) == 1, "only the old instance is left")
    (after,) = living(platform, APP)
    assert [after[key] for key in ("id", "attempt", "phase")] == [before["id"], before["attempt"], "healthy"]


def living(platform: Platform, app: str) -> list[dict[str, Any]]:
    """Instances that have not ended, those on their way out included."""
    phases = "pending,assigned,starting,healthy,unhealthy,stopping"
    found: list[dict[str, Any]] = api(platform, f"apps/{app}/instances?limit=100&filter[phase]={phases}")["data"]
    return found


@contextmanager
def took_at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began <= seconds


def deploy(platform: Platform, *arguments: str, code: int, app: str = APP) -> str:
    """Deploy what must fail; returns what was printed."""
    return platform.swg("deploy", "-a", app, *arguments, code=code)


def newest_deployment(platform: Platform, app: str = APP) -> dict[str, Any]:
    found: dict[str, Any] = api(platform, f"apps/{app}/deployments?limit=1&sort=created_at:desc")["data"][0]
    return found


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_guest_finds_apps_by_name(shop: Platform) -> None:
    (instance,) = living(shop, APP)
    names = [f"{APP}.internal", f"web.{APP}.internal", f"{instance['id'].replace('_', '-')}.vm.internal"]
    ask = f"import socket; print([socket.gethostbyname(name) for name in {names}])"
    until(lambda: asked_inside(shop, ask) == str([instance["address"]] * 3), "the guest finds itself by all its names")
    absent = "import socket\ntry: socket.gethostbyname('nobody.internal')\nexcept OSError as error: print(error.errno)"
    assert asked_inside(shop, absent) == "-2"  # EAI_NONAME, at once: it is not asked of others


def asked_inside(platform: Platform, program: str) -> str:
    """What a program says in a VM of the app."""
    try:
        return platform.swg("exec", "-a", APP, "--", "python3", "-c", program).strip()
    except CommandFailed as error:
        return str(error)


def test_an_image_that_exits_fails_soon_after_its_third_end(shop: Platform) -> None:
    said = deploy(shop, "-e", "HELLO_MODE=exit", "--wait-timeout", "120", code=UNHEALTHY)
    assert "stage checking: web.0 failed: the workload ended with exit code 3 (3 times)" in said
    assert "  | hello cannot go on" in said
    assert "The release before goes on serving." in said
    deployment = newest_deployment(shop)
    assert deployment["state"] == "rolled_back"
    lines = api(shop, f"apps/{APP}/logs?tail=1000")["data"]
    ends = [moment(line["time"]) for line in lines if line["text"] == "hello cannot go on"]
    assert len(ends) == 3
    assert moment(deployment["finished_at"]) - max(ends) <= 15


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-e", "HELLO_MODE=sick", "-e", "PORT=8080"), "http check on port 8080, path /healthz: status 500"),
        (("-e", "HELLO_MODE=", "--port", "9999"), "http check on port 9999, path /healthz: connection refused"),
    ],
    ids=["never healthy", "wrong port"],
)
def test_an_image_that_never_gets_healthy_fails_at_its_wait_timeout(
    shop: Platform, arguments: tuple[str, ...], reason: str
) -> None:
    with took_at_most(25 + SLACK_S):
        said = deploy(shop, *arguments, "--wait-timeout", "25", code=UNHEALTHY)
    assert "stage checking: not done within 25 s: web.0 has not passed its checks yet" in said
    assert reason in said
    assert "  | hello v1 listens on 8080" in said
    assert newest_deployment(shop)["state"] == "rolled_back"


def test_what_is_not_in_the_registry_is_told_at_once_and_makes_no_release(shop: Platform, registry: Registry) -> None:
    before = api(shop, f"apps/{APP}/releases?limit=1")["data"][0]["number"]
    for wrong, code, reason in (
        (f"{registry.address}/nothing:v1", NOT_FOUND, f"there is no image {registry.address}/nothing:v1"),
        (f"{registry.address}/hello:nope", NOT_FOUND, f"there is no image {registry.address}/hello:nope"),
        ("never-loaded:v1", NOT_FOUND, "no image “never-loaded:v1” was loaded"),
        ("!!", USAGE, "“!!” is not the name of an image"),
    ):
        with took_at_most(10):
            said = deploy(shop, "-i", wrong, code=code)
        assert reason in said
        assert "trace id:" in said
    assert api(shop, f"apps/{APP}/releases?limit=1")["data"][0]["number"] == before


def test_a_corrupt_layer_fails_in_stage_image_and_names_the_digest(
    shop: Platform, registry: Registry, tmp_path: Path
) -> None:
    sample = image(layer(entry("program", hashlib.shake_256(b"noise").digest(200_000), mode=0o755)))
    reference = registry.push(tar_of(sample, tmp_path), "broken:v1")
    digest = hashlib.sha256(sample.layers[0]).hexdigest()
    (stored,) = registry.directory.rglob(f"{digest}/data")
    damaged = bytearray(stored.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    stored.write_bytes(damaged)
    with took_at_most(15 + SLACK_S):
        said = deploy(shop, "-i", reference, "--wait-timeout", "15", code=UNHEALTHY)
    assert "stage image" in said
    assert digest[:12] in said
    assert "The release before goes on serving." in said


def test_a_first_release_that_fails_leaves_nothing_running(platform: Platform, registry: Registry) -> None:
    platform.swg("apps", "create", "first")
    sick = ("-i", f"{registry.address}/hello:v1", "--port", "8080", *CHECK, "-e", "HELLO_MODE=sick")
    said = deploy(platform, *sick, "--wait-timeout", "8", code=UNHEALTHY, app="first")
    assert "not done within 8 s" in said
    app = api(platform, "apps/first")
    assert (app["state"], app["running"]) == ("failed", {})
    status, page = fetch(platform, "first")
    assert status == 503, page
    until(lambda: not living(platform, "first"), "nothing of it runs")


def test_a_scratch_image_from_docker_save_runs_as_its_configuration_says(platform: Platform, tmp_path: Path) -> None:
    platform.swg("images", "load", "mirror:v1", str(docker_save(tmp_path)))
    platform.swg("apps", "create", "mirror")
    url = platform.swg("deploy", "-a", "mirror", "-i", "mirror:v1", "--port", "8080", "-e", "ADDED=later")
    assert url.strip() == f"http://mirror.localhost:{platform.http_port}"
    status, answer = fetch(platform, "mirror")
    assert status == 200
    pairs = [line.partition("=") for line in answer.splitlines()]
    assert [value for name, _, value in pairs if name == "arg"] == ["/srv/mirror", "--from", "the image's Cmd"]
    assert {name: value for name, _, value in pairs if name in ("uid", "gid", "cwd")} == {
        "uid": "1234",
        "gid": "2345",
        "cwd": "/srv/data",
    }
    environment = dict(value.split("=", 1) for name, _, value in pairs if name == "env")
    expected = {"GREETING": "with spaces, “quotes” and = signs", "ADDED": "later", "PORT": "8080"}
    assert environment.items() >= (expected | {"SHELLWEGO_APP": "mirror", "SHELLWEGO_PROCESS": "web"}).items()
    with pytest.raises(CommandFailed, match="not found in the image"):
        platform.swg("exec", "-a", "mirror", "--", "/bin/sh")


def test_a_followed_log_goes_on_with_the_instances_of_a_deploy(
    platform: Platform, registry: Registry, tmp_path: Path
) -> None:
    platform.swg("apps", "create", "told")
    platform.swg("deploy", "-a", "told", "-i", registry.push(hello("v1"), "hello:v1"), "--port", "8080")
    (before,) = living(platform, "told")
    command = [SWG, "logs", "-a", "told", "-f", "-n", "1", "--json"]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(platform.config_home)}
    seen = tmp_path / "followed"
    with seen.open("wb") as output, subprocess.Popen(command, stdout=output, env=environment) as following:
        try:
            until(lambda: before["id"] in seen.read_text(), "the log of what runs")
            platform.swg("env", "set", "-a", "told", "ADDED=later")
            lines = until(
                lambda: [line for line in seen.read_text().splitlines() if before["id"] not in line], "a new one's log"
            )
        finally:
            following.terminate()
    assert json.loads(lines[0])["text"] == "hello v1 starts"


def tar_of(sample: Sample, directory: Path) -> Path:
    path = directory / "oci.tar"
    path.write_bytes(oci_layout(sample))
    return path


def docker_save(directory: Path) -> Path:
    """An image `FROM scratch` with one static program, in the form that `docker save` writes."""
    program = directory / "mirror"
    source = Path(__file__).with_name("mirror.c")
    subprocess.run(["musl-gcc", "-static", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    sample = image(
        layer(entry("srv/mirror", program.read_bytes(), mode=0o755)),
        config={
            "Entrypoint": ["/srv/mirror"],
            "Cmd": ["--from", "the image's Cmd"],
            "User": "1234:2345",
            "WorkingDir": "/srv/data",
            "Env": ["GREETING=with spaces, “quotes” and = signs"],
        },
    )
    saved = directory / "saved.tar"
    command = [
        "skopeo",
        "copy",
        "--quiet",
        f"oci-archive:{tar_of(sample, directory)}",
        f"docker-archive:{saved}:mirror:v1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return saved
