"""A machine of one's own for each test: no context, no project file, nothing from the caller's environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.api_world import OWNER
from tests.api.running_api import Running
from tests.cli.cli_world import HandMadeApi, Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in [name for name in os.environ if name.startswith("SHELLWEGO_")]:
        monkeypatch.delenv(name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return Machine(tmp_path / "home")


@pytest.fixture
def api(machine: Machine) -> Iterator[HandMadeApi]:
    """An API by hand, which is the machine's current context."""
    with HandMadeApi().running() as running:
        machine.context("here", running.url, token="pat_here")
        yield running


@pytest.fixture
def running(tmp_path: Path, machine: Machine) -> Iterator[Running]:
    """The API on a real socket, which is the machine's current context."""
    with Running(tmp_path / "spool") as running:
        machine.context("here", running.url, token=OWNER)
        yield running


@pytest.fixture
def shop(running: Running) -> None:
    """An app there."""
    running.do(running.world.made("/v1/apps", {"name": "shop"}))
