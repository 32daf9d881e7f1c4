"""What the tests of the services share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.rpc.rpc_rig import RpcRig, running


@pytest.fixture
async def rig() -> AsyncIterator[RpcRig]:
    async with running() as made:
        yield made
