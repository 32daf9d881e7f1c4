"""The scripts that people begin with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(name: str, *arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / name, *arguments],
        env={**os.environ, "SHELLWEGO_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", ["setup", "demo", "test", "bench", "lint"])
def test_help_is_given_and_nothing_is_done(tmp_path: Path, name: str, flag: str) -> None:
    ended = run(name, flag, cache=tmp_path / "cache")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: scripts/{name}")
    assert not (tmp_path / "cache").exists(), "a set-up would have made it"


@pytest.mark.parametrize("name", ["setup", "demo", "lint", "test"])
def test_an_argument_that_is_none_is_refused_before_anything_is_done(tmp_path: Path, name: str) -> None:
    ended = run(name, "--frob", cache=tmp_path / "cache")
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"usage: scripts/{name}")
    assert not (tmp_path / "cache").exists()


@pytest.mark.real
def test_a_host_that_is_set_up_knows_the_commands_by_name() -> None:
    for name in ("swg", "plasmavmc"):
        assert shutil.which(name, path="/usr/local/bin"), "scripts/setup links it"
