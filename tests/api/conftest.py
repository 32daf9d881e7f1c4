from __future__ import annotations

from pathlib import Path

import pytest

from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import World, make_world
from tests.contract.store_databases import Database


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> World:
    """On a real database requests run in threads where the test is marked `databases`; virtual time stands still then."""
    clock = VirtualClock()
    open_store = database.open if request.node.get_closest_marker("databases") else database.open_inline
    return await make_world(tmp_path / "spool", clock=clock, store=open_store(clock))
