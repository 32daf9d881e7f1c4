"""The engine's contract on PlasmaVMC, with everything below its manager pretended; real VMs run it in tests/real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shellwego.core.nodes import Backend
from shellwego.drivers.engine.plasmavmc import PlasmaEngine
from tests.contract.engine_contract import EngineContract, EngineUnderTest, MakeEngine
from tests.contract.volume_engine_contract import VolumeEngineContract
from tests.engine.engine_rig import EngineRig


class TestPlasmaEngine(EngineContract, VolumeEngineContract):
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
                connect=rig.parts.network.connect,
            )
            await engine.start()
            return EngineUnderTest(engine, rig.sample.digest)

        return make

    async def test_what_fills_the_disk_takes_of_what_is_free_and_not_of_what_it_could_have(
        self, make: MakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten blocks of which root keeps two: eight could be ours, five are now."""
        engine = (await make()).engine
        status = os.statvfs_result((4096, 4096, 10, 7, 5, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: status)
        facts = await engine.facts()
        assert (facts.disk_bytes, facts.room_on_disk) == (8 * 4096, 5 * 4096)
