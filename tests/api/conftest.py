from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.api_world import World, make_world


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await make_world(tmp_path / "spool")
