"""How VMs end: the first grace is kept, a stop outlives the engine, and a VMM that does not end keeps nobody else."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import HostError
from plasmavmc.guest.api import GuestConfig
from plasmavmc.guest.memory import MemoryGuest, Script
from plasmavmc.host.operations import Keep, Swept, UnendedError
from plasmavmc.hypervisor.backend import VmmLeftError, VmPlan
from plasmavmc.hypervisor.memory import Faults, MemoryBackend, PretendedVmms
from plasmavmc.hypervisor.process import process_of
from plasmavmc.manager import VmManager
from plasmavmc.sleeping import SuspendableMachine
from plasmavmc.states import VmState
from plasmavmc.stillness import Stillness
from plasmavmc.types import Vm, VmHandle, VmSpec
from tests.contract.images_samples import entry, image, layer
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import DEADLINE_S, S, eventually, guest, reaches, running, started

HOUR = 3600.0


class Deaf(MemoryGuest):
    """Takes no notice of the stop signal, and its init's clock stands still: it ends by SIGKILL, or by hand."""

    def __init__(self) -> None:
        super().__init__(deaf_script, sleep=for_ever)
        self.heard: list[tuple[int, float]] = []

    def stop(self, number: int, grace_s: float) -> None:
        self.heard.append((number, grace_s))
        super().stop(number, grace_s)


def deaf_script(_config: GuestConfig) -> Script:
    return Script(stop_code=None)


async def for_ever(_seconds: float) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def deaf(tmp_path: Path) -> EngineRig:
    return EngineRig(tmp_path, vmms=PretendedVmms(lambda _spec: Deaf()))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for takes no time worth telling."""
    for name in ("machine.EXIT_GRACE_S", "stopping.EXIT_GRACE_S", "machine.RETRY_S"):
        monkeypatch.setattr(f"plasmavmc.{name}", 0.01)


def heard(rig: EngineRig, vm_id: str = "vm_one") -> list[tuple[int, float]]:
    found = guest(rig, vm_id)
    assert isinstance(found, Deaf)
    return found.heard


async def ended(order: Awaitable[Vm]) -> Vm:
    async with asyncio.timeout(5.0):
        return await order


async def turns(count: int = 1000) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# Several orders


@pytest.mark.parametrize("grace_s", [HOUR, 2 * HOUR])
async def test_a_second_stop_does_not_cut_the_first_one_s_grace_off(deaf: EngineRig, grace_s: float) -> None:
    manager = await running(deaf)
    told = heard(deaf)
    first = asyncio.create_task(manager.stop("vm_one", HOUR))
    await eventually(lambda: told)
    second = asyncio.create_task(manager.stop("vm_one", grace_s))
    await turns()
    assert deaf.vmms.living() == {"vm_one"}
    guest(deaf).exit(0)
    for order in (first, second):
        status = (await ended(order)).status
        assert (status.state, status.reason_code, status.exit_code) == (S.STOPPED, "stopped", 0)
    assert len(told) == 1, "the workload is not signalled twice"


async def test_an_engine_that_ends_its_vms_keeps_the_grace_of_a_stop_under_way(deaf: EngineRig) -> None:
    manager = await running(deaf)
    first = asyncio.create_task(manager.stop("vm_one", HOUR))
    await eventually(lambda: heard(deaf))
    closing = asyncio.create_task(manager.close(keep_vms=False))
    await turns()
    assert deaf.vmms.living() == {"vm_one"}
    guest(deaf).exit(3)
    await closing
    assert (await first).status.exit_code == 3


async def test_a_second_stop_with_a_shorter_grace_brings_the_end_nearer(deaf: EngineRig) -> None:
    manager = await running(deaf)
    told = heard(deaf)
    first = asyncio.create_task(manager.stop("vm_one", HOUR))
    await eventually(lambda: told)
    vm = await ended(manager.stop("vm_one", 0.01))
    assert (vm.status.state, vm.status.exit_code) == (S.STOPPED, 137)
    assert [number for number, _ in told] == [15, 9]
    await first


async def test_a_vm_that_is_being_stopped_is_deleted_at_once(deaf: EngineRig) -> None:
    manager = await running(deaf)
    first = asyncio.create_task(manager.stop("vm_one", HOUR))
    await eventually(lambda: heard(deaf))
    async with asyncio.timeout(5.0):
        await manager.delete("vm_one")
        await first
    assert not deaf.vmms.known()


async def test_a_stop_goes_on_when_who_asked_for_it_has_gone(deaf: EngineRig, hasty: None) -> None:
    manager = await running(deaf)
    order = asyncio.create_task(manager.stop("vm_one", 0.05))
    await eventually(lambda: heard(deaf))
    order.cancel()
    await asyncio.wait({order})
    await reaches(manager, "vm_one", S.STOPPED)


async def test_a_guest_that_reads_nothing_any_more_is_ended_all_the_same(
    deaf: EngineRig, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(deaf)
    monkeypatch.setattr("plasmavmc.stopping.ASK_S", 0.01)

    async def clogged(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("plasmavmc.guest.memory.MemoryGuestChannel.stop", clogged)
    assert (await ended(manager.stop("vm_one", HOUR))).status.state is S.STOPPED


async def test_an_image_whose_signal_cannot_be_had_costs_no_workload_its_grace(
    deaf: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(deaf)

    def gone(*_: object) -> None:
        raise HostError("storage-error", "the image cannot be read")

    monkeypatch.setattr(deaf.parts.images, "config_of", gone)
    order = asyncio.create_task(manager.stop("vm_one", HOUR))
    await eventually(lambda: heard(deaf))
    assert heard(deaf)[0][0] == 15
    guest(deaf).exit(0)
    assert (await order).status.exit_code == 0


async def test_a_boot_that_is_stopped_twice_is_undone_to_its_end(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.vmms.faults = Faults(hang=True)
    manager = rig.manager()
    undoing, go_on = asyncio.Event(), asyncio.Event()
    release = rig.network.release

    async def slowly(key: str) -> None:
        undoing.set()
        await go_on.wait()
        await release(key)

    monkeypatch.setattr(rig.network, "release", slowly)
    manager.create(rig.spec("one", "serve"))
    manager.start("vm_one")
    await reaches(manager, "vm_one", S.STARTING)
    await eventually(rig.vmms.living)
    first = asyncio.create_task(manager.stop("vm_one"))
    await undoing.wait()
    second = asyncio.create_task(manager.delete("vm_one"))
    await turns(20)
    go_on.set()
    await asyncio.gather(first, second)
    assert rig.network.rules is not None
    assert rig.network.rules.members == ()
    assert await rig.storage.disks() == ()


async def test_a_sleeping_vm_is_stopped_and_deleted_at_the_same_time(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    await asyncio.gather(manager.stop("vm_one"), manager.delete("vm_one"))
    assert manager.list_vms() == ()


class Clock:
    """The loop's, put forward by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self.ahead_s = 0.0
        monkeypatch.setattr(loop, "time", lambda: self._time() + self.ahead_s)


@pytest.mark.parametrize("hurried", [False, True])
async def test_the_grace_begins_when_the_guest_is_told(
    deaf: EngineRig, monkeypatch: pytest.MonkeyPatch, hurried: bool
) -> None:
    manager = await running(deaf)
    clock, waited_for, go_on = Clock(monkeypatch), asyncio.Event(), asyncio.Event()

    async def slowly(_stillness: Stillness) -> None:
        waited_for.set()
        await go_on.wait()

    monkeypatch.setattr(Stillness, "break_off", slowly)
    orders = [asyncio.create_task(manager.stop("vm_one", HOUR))]
    await waited_for.wait()
    if hurried:
        orders.append(asyncio.create_task(manager.stop("vm_one", HOUR / 2)))
        await turns(20)
    clock.ahead_s = HOUR / 4
    go_on.set()
    await eventually(lambda: heard(deaf))
    ((number, grace_s),) = heard(deaf)
    assert (number, round(grace_s)) == (15, HOUR / 4 if hurried else HOUR)
    guest(deaf).exit(0)
    await asyncio.gather(*orders)


# Over a restart of the engine


async def test_a_stop_that_the_engine_s_death_cut_short_is_carried_on(deaf: EngineRig) -> None:
    first = await running(deaf)
    order = asyncio.create_task(first.stop("vm_one", HOUR))
    await eventually(lambda: heard(deaf))
    await died(first)
    again = deaf.manager()
    await again.recover()
    assert again.get("vm_one").status.state is S.STOPPING
    await eventually(lambda: len(heard(deaf)) == 2)
    number, grace_s = heard(deaf)[1]
    assert (number, round(grace_s)) == (15, round(deaf.spec("one").stop_grace_s))
    guest(deaf).exit(0)
    await reaches(again, "vm_one", S.STOPPED)
    assert again.get("vm_one").status.reason_code == "stopped"
    order.cancel()


async def test_a_stop_after_a_restart_waits_for_nobody_to_look_through_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = image(layer(entry("app", b"#!")), config={"Entrypoint": ["/app"], "StopSignal": "SIGQUIT"})
    rig = EngineRig(tmp_path, sample, PretendedVmms(lambda _spec: Deaf()))
    await (await running(rig)).close(keep_vms=True)
    again = rig.manager()
    await again.recover()
    looked_through = threading.Event()
    monkeypatch.setattr("plasmavmc.images.store._is_intact", lambda _directory: looked_through.wait(DEADLINE_S))
    order = asyncio.create_task(again.stop("vm_one", HOUR))
    try:
        await eventually(lambda: heard(rig))
    finally:
        looked_through.set()
    ((number, grace_s),) = heard(rig)
    assert (number, round(grace_s)) == (signal.SIGQUIT, HOUR)
    guest(rig).exit(0)
    assert (await order).status.exit_code == 0


async def test_a_stop_that_was_done_while_the_engine_was_away_is_told_as_a_stop(deaf: EngineRig) -> None:
    first = await running(deaf)
    order = asyncio.create_task(first.stop("vm_one", HOUR))
    await eventually(lambda: heard(deaf))
    await died(first)
    deaf.vmms.kill("vm_one")
    again = deaf.manager()
    await again.recover()
    status = again.get("vm_one").status
    assert (status.state, status.reason_code) == (S.STOPPED, "stopped")
    order.cancel()


async def died(manager: VmManager) -> None:
    """Its tasks end as with the process, without a word to the VMs."""
    for machine in manager._machines:
        for task in (machine._stopping, machine._pausing, machine._task):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})


# A VMM that does not end


async def stuck(rig: EngineRig) -> VmManager:
    """`vm_one` is to end, and its VMM waits for a disk; `vm_two` runs."""
    manager = await running(rig)
    await started(manager, rig.spec("two", "serve"))
    rig.vmms.hanging.add("vm_one")
    with pytest.raises(HostError, match="after SIGKILL"):
        await ended(manager.stop("vm_one", 0))
    return manager


async def hangs(manager: VmManager) -> None:
    """In a moment it is told why `vm_one` does not end."""
    async with asyncio.timeout(5.0):
        revision = -1
        while not tells_why(manager.get("vm_one")):
            revision = await manager.changed(revision)


def tells_why(vm: Vm) -> bool:
    return vm.status.reason_code == "vmm-unkillable" and "after SIGKILL" in vm.status.reason


async def test_a_vmm_that_does_not_end_is_told_and_its_vm_ends_when_it_does(deaf: EngineRig, hasty: None) -> None:
    manager = await stuck(deaf)
    vm = manager.get("vm_one")
    assert vm.status.state is S.STOPPING
    assert tells_why(vm)
    with pytest.raises(HostError):
        await ended(manager.stop("vm_one"))
    deaf.vmms.kill("vm_one")
    await reaches(manager, "vm_one", S.STOPPED)
    await manager.delete("vm_one")
    assert deaf.vmms.known() == {"vm_two"}


async def test_a_vmm_that_does_not_end_is_tried_again(deaf: EngineRig, hasty: None) -> None:
    manager = await stuck(deaf)
    deaf.vmms.hanging.clear()
    await reaches(manager, "vm_one", S.STOPPED)


async def test_a_vmm_that_outlives_a_start_that_was_broken_off_is_ended_before_its_vm_is_over(
    rig: EngineRig, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, begun = MemoryBackend.create_vm, asyncio.Event()

    async def outlives(backend: MemoryBackend, spec: VmSpec, plan: VmPlan) -> VmHandle:
        made = await create(backend, spec, plan)
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        rig.vmms.hanging.add(spec.id)
        raise VmmLeftError(spec, made.backend, plan, UnendedError(process_of(made)))

    monkeypatch.setattr(MemoryBackend, "create_vm", outlives)
    manager = rig.manager()
    manager.create(rig.spec("one", "serve"))
    manager.start("vm_one")
    await begun.wait()
    with pytest.raises(HostError, match="after SIGKILL"):
        await ended(manager.stop("vm_one", 0))
    assert tells_why(manager.get("vm_one"))
    assert rig.vmms.known() == {"vm_one"}
    rig.vmms.hanging.clear()
    await reaches(manager, "vm_one", S.STOPPED)
    assert not rig.vmms.known()


async def test_a_vmm_that_does_not_end_is_left_to_the_next_engine(deaf: EngineRig, hasty: None) -> None:
    manager = await stuck(deaf)
    async with asyncio.timeout(5.0):
        await manager.close(keep_vms=True)
    again = deaf.manager()
    async with asyncio.timeout(5.0):
        await again.recover()
    assert again.get("vm_two").status.state is S.RUNNING
    assert again.get("vm_one").status.state is S.STOPPING
    deaf.vmms.hanging.clear()
    assert (await ended(again.stop("vm_one", 0))).status.state is S.STOPPED


async def test_an_engine_ends_its_other_vms_beside_one_that_does_not_end(deaf: EngineRig, hasty: None) -> None:
    manager = await stuck(deaf)
    guest(deaf, "vm_two").exit(0)
    async with asyncio.timeout(5.0):
        await manager.close(keep_vms=False)
    assert manager.get("vm_two").status.state is S.STOPPED


async def test_the_engine_starts_beside_a_vmm_that_neither_answers_nor_ends(
    deaf: EngineRig, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await running(deaf)
    await started(first, deaf.spec("two", "serve"))
    await first.close(keep_vms=True)
    deaf.vmms.hanging.add("vm_one")
    silent = guest(deaf)

    def says_nothing() -> None:
        raise HostError("guest-silent", "the guest does not answer")

    monkeypatch.setattr(silent, "attach", says_nothing)
    again = deaf.manager()
    kept = keeps(deaf, monkeypatch)
    async with asyncio.timeout(5.0):
        await again.recover()
    assert again.get("vm_two").status.state is S.RUNNING
    vm = again.get("vm_one")
    assert vm.status.state is S.STOPPING
    assert tells_why(vm)
    assert len(kept()) == 2, "root's sweep lets it be"
    address = first.get("vm_one").status.endpoints[0]
    assert deaf.network.rules is not None
    assert address in {f"tcp:{member.ipv4}" for member in deaf.network.rules.members}, "it is nobody else's yet"
    deaf.vmms.hanging.clear()
    await reaches(again, "vm_one", S.FAILED)
    assert again.get("vm_one").status.reason_code == "guest-silent"


def keeps(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> Callable[[], frozenset[str]]:
    """What the last sweep was told to keep."""
    told: list[Keep] = []

    async def sweep(keep: Keep) -> Swept:
        told.append(keep)
        return Swept()

    monkeypatch.setattr(rig.host, "sweep", sweep)
    return lambda: frozenset(told[-1].vms)


@pytest.mark.parametrize("state", [S.STARTING, S.RUNNING])
async def test_a_boot_whose_vmm_does_not_end_is_not_over(deaf: EngineRig, hasty: None, state: VmState) -> None:
    deaf.vmms.faults = Faults(hang=True)
    manager = deaf.manager()
    manager.create(deaf.spec("one", "serve"))
    manager.start("vm_one")
    await reaches(manager, "vm_one", S.STARTING)
    await eventually(deaf.vmms.living)
    deaf.vmms.hanging.add("vm_one")
    if state is S.STARTING:
        with pytest.raises(HostError):
            await ended(manager.stop("vm_one"))
        assert tells_why(manager.get("vm_one"))
        deaf.vmms.hanging.clear()
    else:
        deaf.vmms.kill("vm_one")
    await reaches(manager, "vm_one", S.STOPPED if state is S.STARTING else S.FAILED)
    await manager.delete("vm_one")
    assert not deaf.vmms.known()


async def test_a_suspended_vm_sleeps_when_its_vmm_has_ended_and_can_be_resumed(rig: EngineRig, hasty: None) -> None:
    manager = await running(rig)
    rig.vmms.hanging.add("vm_one")
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await hangs(manager)
    assert manager.get("vm_one").status.state is S.SUSPENDING
    rig.vmms.hanging.clear()
    vm = await ended(suspending)
    assert (vm.status.state, vm.status.reason) == (S.SUSPENDED, "")
    assert not rig.vmms.known()
    assert (await manager.resume("vm_one")).status.state is S.RUNNING


async def test_a_vmm_that_falls_silent_amid_a_suspend_and_does_not_end_can_be_stopped(
    rig: EngineRig, hasty: None
) -> None:
    manager = await running(rig)
    rig.vmms.faults.save_s = HOUR
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await eventually(rig.vmms.standing_still)
    rig.vmms.hanging.add("vm_one")
    guest(rig).cut()
    await hangs(manager)
    for _ in range(2):
        with pytest.raises(HostError, match="after SIGKILL"):
            await ended(manager.stop("vm_one", 0))
        await asyncio.wait({suspending})
    rig.vmms.hanging.clear()
    await reaches(manager, "vm_one", S.STOPPED)


async def test_a_stop_at_the_very_moment_at_which_a_suspend_fails(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def fails(*_: object) -> None:
        begun.set()
        await go_on.wait()
        raise HostError("state-refused", "the state cannot be saved")

    monkeypatch.setattr("plasmavmc.sleeping.take_snapshot", fails)
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await begun.wait()
    go_on.set()
    stopping = asyncio.create_task(manager.stop("vm_one", 0))
    assert (await ended(stopping)).status.state is S.STOPPED
    await asyncio.wait({suspending})


async def test_an_engine_that_ends_meets_a_defect_in_one_vm_s_stop_and_ends_the_others(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    await started(manager, rig.spec("two", "serve"))
    stop = SuspendableMachine.stop

    async def broken(machine: SuspendableMachine, grace_s: float) -> None:
        if machine.spec.id == "vm_one":
            raise ValueError("a defect")
        await stop(machine, grace_s)

    monkeypatch.setattr(SuspendableMachine, "stop", broken)
    await manager.close(keep_vms=False)
    assert rig.vmms.living() == {"vm_one"}


async def test_an_engine_ends_beside_a_suspended_vm_whose_vmm_does_not(rig: EngineRig, hasty: None) -> None:
    manager = await running(rig)
    rig.vmms.hanging.add("vm_one")
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await hangs(manager)
    async with asyncio.timeout(5.0):
        await manager.close(keep_vms=True)
    await asyncio.gather(suspending, return_exceptions=True)
    again = rig.manager()
    async with asyncio.timeout(5.0):
        await again.recover()
    assert again.get("vm_one").status.state is S.SUSPENDING
    rig.vmms.hanging.clear()
    await reaches(again, "vm_one", S.SUSPENDED)
    assert (await again.resume("vm_one")).status.state is S.RUNNING


async def test_a_resume_that_fails_leaves_no_vmm_behind(rig: EngineRig, hasty: None) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    rig.vmms.faults = Faults(load=HostError("state-refused", "the state is damaged"))
    rig.vmms.hanging.add("vm_one")
    resuming = asyncio.create_task(manager.resume("vm_one"))
    await hangs(manager)
    assert manager.get("vm_one").status.state is S.RESUMING
    rig.vmms.hanging.clear()
    await asyncio.wait({resuming})
    assert manager.get("vm_one").status.state is S.SUSPENDED
    rig.vmms.faults = Faults()
    assert (await manager.resume("vm_one")).status.state is S.RUNNING


# One that cannot be taken over


async def test_a_vm_whose_address_is_no_more_of_this_node_s_does_not_keep_the_engine_from_starting(
    rig: EngineRig,
) -> None:
    first = await running(rig)
    await started(first, rig.spec("two", "serve"))
    await first.close(keep_vms=True)
    (record,) = [each for each in rig.parts.records.load() if each.spec.id == "vm_one"]
    (other,) = [each for each in rig.parts.records.load() if each.spec.id == "vm_two"]
    assert record.ipv4 is not None
    rig.parts.records.save(replace(record, ipv4=type(record.ipv4)("192.0.2.1")))
    again = rig.manager()
    await again.recover()
    status = again.get("vm_one").status
    assert (status.state, status.reason_code) == (S.FAILED, "address-conflict")
    assert rig.vmms.living() == {other.spec.id}
