"""The engine's contract on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import replace

import pytest

from shellwego.core.errors import ConflictError
from shellwego.core.vms import VmPhase
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

    @pytest.fixture
    def elsewhere(self, make: MakeEngine) -> MakeEngine:
        return make


class CarelessEngine(MemoryEngine):
    """Wrong: it takes in whatever comes, for whomever."""

    async def import_memory(self, order: VmOrder, stream: AsyncIterable[bytes]) -> None:
        async for _ in stream:
            pass
        await self.run(order)
        self._vms[order.vm_id].view = replace(self._vms[order.vm_id].view, phase=VmPhase.ASLEEP)


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

    async def careless(self) -> EngineUnderTest:
        return EngineUnderTest(CarelessEngine(SystemClock(), boot_s=0.01), DIGEST)

    async def test_that_goes_on_without_what_it_knew(self) -> None:
        with pytest.raises((AssertionError, ConflictError)):
            await EngineContract().test_what_sleeps_goes_on_elsewhere_with_what_it_knew(self.careless, self.careless)

    async def test_that_takes_a_memory_of_a_stranger(self) -> None:
        with pytest.raises(pytest.fail.Exception):
            await EngineContract().test_a_memory_is_for_nobody_else(self.careless, self.careless)

    async def test_that_takes_half_a_memory(self) -> None:
        with pytest.raises(pytest.fail.Exception):
            await EngineContract().test_of_a_memory_that_breaks_off_nothing_is_there(self.careless, self.careless, 0.5)

    async def test_that_takes_what_sleeps_for_a_crash(self) -> None:
        with pytest.raises(AssertionError):
            await EngineContract().test_a_suspended_vm_can_be_stopped(self.make)
