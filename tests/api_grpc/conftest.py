from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api_grpc.grpc_world import GrpcWorld, running


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[GrpcWorld]:
    async with running(tmp_path / "spool") as made:
        yield made
