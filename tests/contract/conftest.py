"""What the contract tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.node_port import Rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Node ports on loopback; what is started there ends with the test."""
    rig = Rig()
    yield rig
    await rig.close()
