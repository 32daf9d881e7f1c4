"""A WebAssembly module as an app of the platform: from the file to its log, over a restart, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.platform import Platform
from tests.contract.wasm_modules import LIBRARY, module
from tests.real.platform_harness import api, healthy, instances, kill_platform, scratch_platform, until

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


def test_what_a_module_cannot_do_fails_its_deploy_by_name(platform: Platform, tmp_path: Path) -> None:
    platform.swg("apps", "create", "web")
    served = platform.swg("deploy", "-a", "web", "-i", file_of(tmp_path, SERVES), "--port", "8080", code=None)
    assert "cannot serve HTTP" in served
    platform.swg("apps", "destroy", "web", "--yes")
    platform.swg("apps", "create", "lib")
    library = platform.swg("deploy", "-a", "lib", "-i", file_of(tmp_path, LIBRARY), code=None)
    assert "has no _start" in library
    platform.swg("apps", "destroy", "lib", "--yes")
