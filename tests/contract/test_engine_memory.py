"""The engine's contract on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

import pytest

from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.ports.engine import VmOrder
from tests.contract.engine_contract import EngineContract, EngineUnderTest, MakeEngine

DIGEST = "sha256:" + "0" * 64


class TestMemoryEngine(EngineContract):
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


class TestTheContractRejectsAWrongEngine:
    async def make(self) -> EngineUnderTest:
        return EngineUnderTest(ForgetfulEngine(SystemClock(), boot_s=0.01), DIGEST)

    async def test_that_cannot_tell_an_asked_end_from_a_crash(self) -> None:
        with pytest.raises(AssertionError):
            await EngineContract().test_a_stopped_vm_ends_as_asked(self.make)

    async def test_that_takes_what_sleeps_for_a_crash(self) -> None:
        with pytest.raises(AssertionError):
            await EngineContract().test_a_suspended_vm_can_be_stopped(self.make)
