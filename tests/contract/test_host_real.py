"""The contract of `Host` on the root helper."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.host_contract import HostContract
from tests.contract.host_parts import HostRig
from tests.contract.host_rig import real_helper, rig_of


@pytest.mark.real
class TestRootHelper(HostContract):
    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[HostRig]:
        async with real_helper(tmp_path) as helper:
            yield rig_of(helper)
