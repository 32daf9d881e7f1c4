"""The hypervisor contract on the memory backend, and on backends that are wrong on purpose."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import ConflictError, HostError, NotFoundError
from plasmavmc.guest.api import GuestCard, GuestChannel, GuestConfig, GuestHello
from plasmavmc.guest.memory import MemoryGuest, Script
from plasmavmc.hypervisor.backend import MemoryPlan, VmmExit, VmPlan
from plasmavmc.hypervisor.memory import Faults, MemoryBackend, PretendedVmms
from plasmavmc.types import VmHandle, VmSpec, VmUsage, vm_key
from tests.contract.hypervisor_contract import CHECKS, Check, a_spec, gone
from tests.contract.hypervisor_fork_contract import FORK_CHECKS, ForkCheck


def workload(config: GuestConfig) -> Script:
    """The suite's workload: `exit N`, or `serve`."""
    match config.argv[1:]:
        case ("exit", code):
            return Script(exit_code=int(code))
        case _:
            return Script()


class MemoryRig:
    def __init__(self, kind: type[MemoryBackend] = MemoryBackend) -> None:
        self._kind = kind
        self.vmms = PretendedVmms(lambda _spec: MemoryGuest(workload))
        self.backend = kind(self.vmms)

    def plan(self, spec: VmSpec) -> VmPlan:
        self.vmms.faults = Faults()
        return VmPlan(vm_key(spec.id), Path("/run/none"), Path("/none/kernel"), Path("/none/initrd"))

    def broken_plan(self, spec: VmSpec) -> VmPlan:
        plan = self.plan(spec)
        self.vmms.faults = Faults(create=HostError("vmm-refused", "QEMU ended at its start with code 1"))
        return plan

    def restored_plan(self, spec: VmSpec, _origin: VmSpec, memory: MemoryPlan) -> VmPlan:
        return replace(self.plan(spec), memory=memory)

    async def guest_runs(self, handle: VmHandle) -> bool:
        vmm = self.vmms._vmms[handle.vm_id]
        return vmm.started and not vmm.stands_still

    def restart(self) -> None:
        self.backend.close()
        self.backend = self._kind(self.vmms)

    def kill(self, handle: VmHandle) -> None:
        self.vmms.kill(handle.vm_id)

    def make_zombie(self, handle: VmHandle) -> None:
        self.vmms.kill(handle.vm_id)

    def lives(self, handle: VmHandle) -> bool:
        return handle.vm_id in self.vmms.living()

    def traces(self) -> frozenset[str]:
        return self.vmms.known()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_memory_backend_keeps_the_contract(check: Check) -> None:
    await check(MemoryRig())


@pytest.mark.parametrize("check", FORK_CHECKS, ids=lambda check: check.__name__)
async def test_the_memory_backend_suspends_and_forks_by_the_contract(check: ForkCheck) -> None:
    await check(MemoryRig())


class RunsAtOnce(MemoryBackend):
    """The guest runs before anybody said so."""

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        handle = await super().create_vm(spec, plan)
        self._vmms.run(self._held[spec.id])
        return handle


class SeesNoDeath(MemoryBackend):
    """Waits for the guest's word, and a killed VMM says none."""

    async def wait_vm(self, handle: VmHandle) -> VmmExit:
        ended = await super().wait_vm(handle)
        if ended.code != 0:
            await asyncio.Event().wait()
        return ended


class SharesItsWait(MemoryBackend):
    """Who gives up waiting takes the others with him."""

    async def wait_vm(self, handle: VmHandle) -> VmmExit:
        return await self._held.of(handle).exit


class AdoptsTheDead(MemoryBackend):
    """Looks at the number only, and a zombie has one."""

    async def recover(self, handle: VmHandle) -> GuestChannel | None:
        vmm = self._vmms._vmms.get(handle.vm_id)
        if vmm is None:
            return None
        self._held[handle.vm_id] = vmm
        return vmm.guest.attach()


class ForgetsToCleanUp(MemoryBackend):
    """Deleting forgets the VM, and leaves its things on the host."""

    async def delete_vm(self, handle: VmHandle) -> None:
        await self.stop_vm(handle)
        self._held.pop(handle.vm_id, None)


class DeletesOnce(MemoryBackend):
    """A second delete is an error."""

    async def delete_vm(self, handle: VmHandle) -> None:
        self._held.of(handle)
        await super().delete_vm(handle)


class StopsNothing(MemoryBackend):
    """Reports success."""

    async def stop_vm(self, handle: VmHandle) -> None:
        return


class TakesAnyNumber(MemoryBackend):
    """Adopts whatever has the process number, whenever it started."""

    async def recover(self, handle: VmHandle) -> GuestChannel | None:
        return await super().recover(VmHandle(handle.vm_id, handle.backend, handle.runtime_dir, handle.pid, 1))


class KnowsStrangers(MemoryBackend):
    """Invents usage for a VM that it does not hold."""

    async def usage(self, handle: VmHandle) -> VmUsage:
        try:
            return await super().usage(handle)
        except NotFoundError:
            return VmUsage()


class LoadsAnything(MemoryBackend):
    """Takes what it is given for a state."""

    async def load_state(self, handle: VmHandle, state: int) -> None:
        with suppress(HostError):
            await super().load_state(handle, state)


class RunsBeforeItWasWoken(MemoryBackend):
    """The guest runs as soon as it is loaded, with the time of its other life."""

    async def load_state(self, handle: VmHandle, state: int) -> None:
        await super().load_state(handle, state)
        self._vmms.run(self._held.of(handle))


class StandsForEver(MemoryBackend):
    """A guest whose state was saved never goes on."""

    async def go_on(self, handle: VmHandle) -> None:
        return


class SavesTheMemoryOfCopiesAsTheirOrigins(MemoryBackend):
    """Gives the shared memory for a copy's own."""

    async def save_state(self, handle: VmHandle, state: int) -> int | None:
        memory = await super().save_state(handle, state)
        return os.memfd_create("wrong") if memory is None else memory


class ForgetsThatItWaits(MemoryBackend):
    """A VM without a state is woken all the same."""

    async def wake_vm(self, handle: VmHandle, card: GuestCard) -> GuestChannel:
        return self._held.of(handle).guest.attach()


WRONG_FORKS: Mapping[type[MemoryBackend], str] = {
    LoadsAnything: "a_state_that_is_none_is_refused_and_nothing_is_left",
    RunsBeforeItWasWoken: "a_vm_that_is_loaded_goes_on_where_it_was_and_leaves_nothing",
    StandsForEver: "a_vm_whose_state_was_saved_goes_on_as_if_nothing_had_been",
    SavesTheMemoryOfCopiesAsTheirOrigins: "a_copy_without_memory_of_its_own_can_be_saved_too",
    ForgetsThatItWaits: "a_vm_that_waits_for_its_state_neither_starts_nor_wakes_nor_stays",
}


@pytest.mark.parametrize(("wrong", "name"), WRONG_FORKS.items(), ids=lambda value: getattr(value, "__name__", ""))
async def test_a_backend_that_suspends_wrongly_breaks_the_contract(wrong: type[MemoryBackend], name: str) -> None:
    [check] = [check for check in FORK_CHECKS if check.__name__ == name]
    with pytest.raises((AssertionError, TimeoutError, ConflictError, pytest.fail.Exception)):
        async with asyncio.timeout(0.5):
            await check(MemoryRig(wrong))


WRONG: Mapping[type[MemoryBackend], str] = {
    RunsAtOnce: "a_vm_that_was_created_but_never_started_is_not_adopted_and_does_not_stay",
    SeesNoDeath: "a_killed_vmm_is_seen_by_all_who_wait_and_its_channel_ends",
    SharesItsWait: "who_gives_up_waiting_disturbs_nobody",
    AdoptsTheDead: "a_vm_that_ended_meanwhile_is_gone_and_can_be_deleted",
    ForgetsToCleanUp: "a_deleted_vm_leaves_nothing_and_deleting_again_is_fine",
    DeletesOnce: "a_deleted_vm_leaves_nothing_and_deleting_again_is_fine",
    StopsNothing: "a_running_vm_is_stopped_at_once_and_stopping_again_is_fine",
    TakesAnyNumber: "a_reused_process_number_is_not_adopted",
    KnowsStrangers: "an_unknown_vm_is_not_found",
}


@pytest.mark.parametrize(("wrong", "name"), WRONG.items(), ids=lambda value: getattr(value, "__name__", ""))
async def test_a_wrong_backend_breaks_the_contract(wrong: type[MemoryBackend], name: str) -> None:
    [check] = [check for check in CHECKS if check.__name__ == name]
    with pytest.raises((AssertionError, TimeoutError, NotFoundError, asyncio.CancelledError, pytest.fail.Exception)):
        async with asyncio.timeout(0.5):
            await check(MemoryRig(wrong))


async def test_a_guest_that_hangs_says_nothing_while_its_vmm_lives() -> None:
    rig = MemoryRig()
    handle, channel = await started(rig, Faults(hang=True))
    first = asyncio.ensure_future(anext(channel.events()))
    done, _ = await asyncio.wait({first}, timeout=0.05)
    assert not done
    assert rig.lives(handle)
    await gone(rig, handle, channel)
    with pytest.raises(StopAsyncIteration):
        await first


async def test_a_slow_boot_takes_the_time_that_the_clock_says() -> None:
    rig = MemoryRig()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    rig.vmms.sleep = sleep
    handle, channel = await started(rig, Faults(boot_s=40.0))
    assert isinstance(await anext(channel.events()), GuestHello)
    assert slept == [40.0]
    await gone(rig, handle, channel)


async def started(rig: MemoryRig, faults: Faults) -> tuple[VmHandle, GuestChannel]:
    spec = a_spec()
    plan = rig.plan(spec)
    rig.vmms.faults = faults
    handle = await rig.backend.create_vm(spec, plan)
    return handle, await rig.backend.start_vm(handle)
