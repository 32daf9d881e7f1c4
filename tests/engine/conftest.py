"""What several files of tests begin with: an engine on memory parts, and the guest's own loop to talk to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine.engine_rig import EngineRig
from tests.engine.guest_loopback import Guest, build, loopback


@pytest.fixture
def rig(tmp_path: Path) -> EngineRig:
    return EngineRig(tmp_path)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(build("loopback", tmp_path_factory.mktemp("init")))


@pytest.fixture
async def guest(program: Path, tmp_path: Path) -> AsyncIterator[Guest]:
    async with loopback(program, tmp_path) as running:
        yield running
