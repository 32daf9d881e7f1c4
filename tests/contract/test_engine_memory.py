"""The engine's contract on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import replace

import pytest

from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.core.vms import VmPhase
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.ports.engine import VmOrder, VolumeView
from tests.contract.engine_contract import EngineContract, EngineUnderTest, MakeEngine
from tests.contract.volume_engine_contract import VolumeEngineContract
from tests.contract.volume_sending_contract import VolumeSendingContract

DIGEST = "sha256:" + "0" * 64


class TestMemoryEngine(EngineContract, VolumeEngineContract, VolumeSendingContract):
    @pytest.fixture
    def make(self) -> MakeEngine:
        async def make() -> EngineUnderTest:
            engine = MemoryEngine(SystemClock(), boot_s=0.01)
            return await started(engine)

        async def started(engine: MemoryEngine) -> EngineUnderTest:
            async def write(volume_id: str, data: bytes) -> None:
                engine.disks.kept[volume_id].holds = data.decode()

            await engine.start()
            return EngineUnderTest(engine, DIGEST, again=lambda: started(engine), write=write)

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

    async def create_volume(self, volume_id: str, size_bytes: int, key: Sensitive | None = None) -> None:
        self.disks.kept.pop(volume_id, None)
        await super().create_volume(volume_id, size_bytes)


class CredulousEngine(MemoryEngine):
    """Wrong: it lays what comes over whatever it has, and does not ask whether that is what was sent."""

    async def receive_snapshot(
        self, volume_id: str, snapshot_id: str, stream: AsyncIterable[bytes], since: str = ""
    ) -> str:
        try:
            return await super().receive_snapshot(volume_id, snapshot_id, stream, since)
        except InvalidError:
            self.disks.kept[volume_id].snapshots[snapshot_id] = self.disks.kept[volume_id].holds
            return "0" * 64


class OpenEngine(MemoryEngine):
    """Wrong: any key opens a volume, and none is needed."""

    async def unlock_volume(self, volume_id: str, key: Sensitive) -> None:
        pass

    async def create_volume(self, volume_id: str, size_bytes: int, key: Sensitive | None = None) -> None:
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

    async def test_that_takes_what_was_damaged_on_its_way(self) -> None:
        async def make() -> EngineUnderTest:
            engine = MemoryEngine(SystemClock(), boot_s=0.01)

            async def write(volume_id: str, data: bytes) -> None:
                engine.disks.kept[volume_id].holds = data.decode()

            return EngineUnderTest(engine, DIGEST, write=write)

        async def credulous() -> EngineUnderTest:
            return EngineUnderTest(CredulousEngine(SystemClock(), boot_s=0.01), DIGEST)

        behaviour = VolumeSendingContract().test_what_breaks_off_or_is_damaged_leaves_what_was_there_and_can_come_again
        with pytest.raises(pytest.fail.Exception):
            await behaviour(make, credulous)

    async def test_that_leaves_in_clear_what_has_a_key(self) -> None:
        async def make() -> EngineUnderTest:
            return EngineUnderTest(OpenEngine(SystemClock(), boot_s=0.01), DIGEST)

        contract = VolumeEngineContract()
        with pytest.raises(AssertionError):
            await contract.test_a_volume_with_a_key_is_opened_by_that_alone(make)

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
            await EngineContract().test_a_suspended_vm_that_is_stopped_ends_without_having_run_again(self.make)
