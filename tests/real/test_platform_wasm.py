"""A WebAssembly module as an app of the platform: from the file to log and URL, over restarts, and what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.load import Load
from examples.demo.platform import Platform
from plasmavmc.host.helper.worker import is_worker_process
from tests.contract.wasm_modules import LIBRARY, module
from tests.contract.wasm_services import says
from tests.real.platform_harness import (
    api,
    arguments_of,
    fetch,
    healthy,
    instances,
    kill_platform,
    pids,
    scratch_platform,
    told,
    until,
)

pytestmark = pytest.mark.real
SERVES = module(
    "(call $say (i32.const 1) (i32.const 1024) (i32.const 8)) (loop $forever (br $forever))", data="at work\\n"
)
"""Says one line, and then keeps busy."""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with scratch_platform() as made:
        yield made


def file_of(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "job.wasm"
    path.write_bytes(content)
    return str(path)


def lines(platform: Platform, app: str) -> list[str]:
    return [line["text"] for line in api(platform, f"apps/{app}/logs?tail=100")["data"]]


def test_a_module_is_deployed_from_its_file_and_lives_through_a_restart(platform: Platform, tmp_path: Path) -> None:
    platform.swg("apps", "create", "job")
    platform.swg("deploy", "-a", "job", "-i", file_of(tmp_path, SERVES), "--backend", "wasm")
    assert lines(platform, "job") == ["at work"]
    (before,) = instances(platform, "job")
    kill_platform(platform)
    platform.start()
    until(lambda: healthy(platform, "job", 1), "the instance is healthy again")
    (after,) = instances(platform, "job")
    assert (after["id"], after["vm_id"], after["attempt"]) == (before["id"], before["vm_id"], before["attempt"])
    refused = platform.swg("exec", "-a", "job", "--", "/bin/true", code=None)
    assert "unsupported" in refused or "no commands" in refused
    platform.swg("apps", "destroy", "job", "--yes")


def serving(version: str) -> bytes:
    """Answers with its version."""
    return says(rf"Content-Type: text/plain\nX-Hello-Version: {version}\n\nhello from {version}")


def workers(platform: Platform) -> list[int]:
    """Processes that run modules of this platform, or wait for one."""
    return [pid for pid in pids() if is_worker_process(words := arguments_of(pid)) and platform.key in " ".join(words)]


def test_a_module_that_serves_is_replaced_under_load_without_a_failed_request_and_comes_back_when_killed(
    platform: Platform, tmp_path: Path
) -> None:
    platform.swg("apps", "create", "web")
    platform.swg("deploy", "-a", "web", "-i", file_of(tmp_path, serving("v1")), "--port", "8080", "--check-path", "/")
    assert fetch(platform, "web", "/any?query") == (200, "hello from v1")
    with Load(platform.http_port, "web.localhost", rate=20, connections=4) as load:
        platform.swg("deploy", "-a", "web", "-i", file_of(tmp_path, serving("v2")), "--port", "8080")
    assert not load.journal.failed, told(load.journal.failed)
    assert set(load.journal.versions()) <= {"v1", "v2"}
    assert fetch(platform, "web") == (200, "hello from v2")
    (before,) = instances(platform, "web")
    for pid in workers(platform):
        os.kill(pid, signal.SIGKILL)
    until(lambda: instances(platform, "web")[0]["attempt"] > before["attempt"], "the VM is replaced")
    until(lambda: fetch(platform, "web") == (200, "hello from v2"), "it serves again")
    (after,) = instances(platform, "web")
    assert after["id"] == before["id"]
    platform.swg("apps", "destroy", "web", "--yes")


def test_what_a_module_cannot_do_fails_its_deploy_by_name(platform: Platform, tmp_path: Path) -> None:
    platform.swg("apps", "create", "lib")
    library = platform.swg("deploy", "-a", "lib", "-i", file_of(tmp_path, LIBRARY), code=None)
    assert "has no _start" in library
    platform.swg("apps", "destroy", "lib", "--yes")
