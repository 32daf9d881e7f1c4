"""The engine's contract on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.ports.engine import VmOrder, VolumeView
from tests.contract.engine_contract import EngineContract, EngineUnderTest, MakeEngine
from tests.contract.volume_engine_contract import VolumeEngineContract

DIGEST = "sha256:" + "0" * 64


class TestMemoryEngine(EngineContract, VolumeEngineContract):
    @pytest.fixture
    def make(self) -> MakeEngine:
        async def make() -> EngineUnderTest:
            engine = MemoryEngine(SystemClock(), boot_s=0.01)
            await engine.start()
            return EngineUnderTest(engine, DIGEST)

        return make


class ForgetfulEngine(MemoryEngine):
    """Wrong: the same order again is a new VM, and an end that was asked for looks like a crash."""

    async def run(self, order: VmOrder) -> None:
        await self.delete(order.vm_id)
        await super().run(order)

    async def stop(self, vm_id: str, grace_s: float) -> None:
        self.die(vm_id)


class SharingEngine(MemoryEngine):
    """Wrong: whoever asks for a volume has it, and what is made again is made anew."""

    async def volumes(self) -> tuple[VolumeView, ...]:
        return tuple(replace(view, vm_id="") for view in await super().volumes())

    async def create_volume(self, volume_id: str, size_bytes: int) -> None:
        self.disks.kept.pop(volume_id, None)
        await super().create_volume(volume_id, size_bytes)


class TestTheContractRejectsAWrongEngine:
    async def make(self) -> EngineUnderTest:
        return EngineUnderTest(ForgetfulEngine(SystemClock(), boot_s=0.01), DIGEST)

    async def test_that_cannot_tell_an_asked_end_from_a_crash(self) -> None:
        with pytest.raises(AssertionError):
            await EngineContract().test_a_stopped_vm_ends_as_asked(self.make)

    async def test_that_shares_a_volume_or_makes_it_twice(self) -> None:
        async def make() -> EngineUnderTest:
            return EngineUnderTest(SharingEngine(SystemClock(), boot_s=0.01), DIGEST)

        contract = VolumeEngineContract()
        with pytest.raises(pytest.fail.Exception):
            await contract.test_a_volume_is_made_once_and_only_grows(make)
        with pytest.raises(AssertionError):
            await contract.test_a_vm_has_its_volume_until_it_has_ended_and_nobody_else_has(make)

    async def test_that_takes_what_sleeps_for_a_crash(self) -> None:
        with pytest.raises(AssertionError):
            await EngineContract().test_a_suspended_vm_can_be_stopped(self.make)
