"""The engine's contract on PlasmaVMC, with everything below its manager pretended; real VMs run it in tests/real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plasmavmc.hypervisor.memory import PretendedGuest
from shellwego.core.nodes import Backend
from shellwego.drivers.engine.plasmavmc import PlasmaEngine, to_words
from tests.contract.engine_contract import EngineContract, EngineUnderTest, MakeEngine
from tests.contract.volume_engine_contract import VolumeEngineContract
from tests.engine.engine_rig import EngineRig


def maker(directory: Path, states: dict[str, PretendedGuest]) -> MakeEngine:
    """`states` is what saved guests were, which goes with their bytes from host to host."""

    async def make() -> EngineUnderTest:
        rig = EngineRig(directory)
        rig.vmms.states = states
        engine = PlasmaEngine(
            rig.manager(),
            backends=lambda: (Backend(name="memory", status="ready", suspend=True),),
            disk_dir=directory,
            version="test",
            confinement=lambda: "none",
            connect=rig.parts.network.connect,
            images=lambda: (rig.sample.digest,),
        )
        await engine.start()
        return EngineUnderTest(engine, rig.sample.digest)

    return make


class TestPlasmaEngine(EngineContract, VolumeEngineContract):
    @pytest.fixture
    def states(self) -> dict[str, PretendedGuest]:
        return {}

    @pytest.fixture
    def make(self, tmp_path: Path, states: dict[str, PretendedGuest]) -> MakeEngine:
        return maker(tmp_path / "here", states)

    @pytest.fixture
    def elsewhere(self, tmp_path: Path, states: dict[str, PretendedGuest]) -> MakeEngine:
        return maker(tmp_path / "there", states)

    async def test_what_fills_the_disk_takes_of_what_is_free_and_not_of_what_it_could_have(
        self, make: MakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten blocks of which root keeps two: eight could be ours, five are now."""
        engine = (await make()).engine
        status = os.statvfs_result((4096, 4096, 10, 7, 5, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: status)
        facts = await engine.facts()
        assert (facts.disk_bytes, facts.room_on_disk) == (8 * 4096, 5 * 4096)

    async def test_the_images_that_are_built_here_are_told(self, make: MakeEngine) -> None:
        tested = await make()
        assert (await tested.engine.facts()).images == (tested.digest,)


def test_long_words_about_a_host_are_told_by_their_digest_and_stay_different() -> None:
    one, other = (to_words({"program": "p", "devices": "x" * 500 + end}) for end in "ab")
    assert one[1] == other[1] == ("program", "p")
    assert one[0] != other[0]
    assert len(one[0][1]) == 64
