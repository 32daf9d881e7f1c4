"""The init's own tests, in C and under sanitizers, and the static analyzer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from plasmavmc.guest.boot import init_sources


def make(target: str, out: Path) -> subprocess.CompletedProcess[str]:
    argv = ["make", "-s", "-C", str(init_sources()), f"OUT={out}", target]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("target", ["check", "analyze"])
def test_the_init_passes(target: str, tmp_path: Path) -> None:
    done = make(target, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_init_refuses_to_be_anything_but_pid_1(tmp_path: Path) -> None:
    done = make("all", tmp_path)
    assert done.returncode == 0, done.stderr
    started = subprocess.run([tmp_path / "init"], capture_output=True, text=True, timeout=10, check=False)
    assert started.returncode == 1
    assert "first process of a microVM" in started.stderr


def test_every_source_is_small() -> None:
    for source in init_sources().glob("*.[ch]"):
        assert len(source.read_text().splitlines()) <= 400, source.name
