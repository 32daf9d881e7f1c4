"""The engine's contract on PlasmaVMC, with everything below its manager pretended; real VMs run it in tests/real."""

from __future__ import annotations

from pathlib import Path

import pytest

from shellwego.core.nodes import Backend
from shellwego.drivers.engine.plasmavmc import PlasmaEngine
from tests.contract.engine_contract import EngineContract, EngineUnderTest, MakeEngine
from tests.engine.engine_rig import EngineRig


class TestPlasmaEngine(EngineContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeEngine:
        async def make() -> EngineUnderTest:
            rig = EngineRig(tmp_path)
            engine = PlasmaEngine(
                rig.manager(),
                backends=lambda: (Backend(name="memory", status="ready"),),
                disk_dir=tmp_path,
                version="test",
                confinement=lambda: "none",
            )
            await engine.start()
            return EngineUnderTest(engine, rig.sample.digest)

        return make
