"""The engine ends and starts again around suspends: each VM is then running, suspended or ended, and never in between."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from plasmavmc.errors import GuestError, HostError
from plasmavmc.guest.api import GuestCard
from plasmavmc.guest.memory import MemoryGuestChannel
from plasmavmc.manager import VmManager
from plasmavmc.states import VmState
from plasmavmc.types import vm_key
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import (
    DEADLINE_S,
    S,
    eventually,
    guest,
    only_disks,
    only_snapshots,
    reaches,
    running,
    runs_on,
    slowly,
    snapshot,
    started,
)


async def test_a_suspended_vm_outlives_the_engine(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    await manager.close(keep_vms=True)
    again = rig.manager()
    await again.recover()
    assert again.get("vm_one").status.state is S.SUSPENDED
    assert (await again.resume("vm_one")).status.state is S.RUNNING
    assert guest(rig).config is not None


async def test_a_suspended_vm_whose_snapshot_is_gone_has_failed(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    snapshot(rig).rename(rig.directory / "elsewhere")
    again = rig.manager()
    await again.recover()
    status = again.get("vm_one").status
    assert (status.state, status.reason_code) == (S.FAILED, "snapshot-missing")


def crash(rig: EngineRig, state: VmState) -> None:
    """The engine is gone; the record of the VM says that it was in this state."""
    (record,) = rig.parts.records.load()
    rig.parts.records.save(replace(record, status=replace(record.status, state=state)))


async def abandoned(manager: VmManager) -> None:
    """Its tasks end as with the process, without a word to the VMs."""
    for machine in manager._machines:
        for task in (machine._pausing, machine._task):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})


async def crashed_beside_a_snapshot_that_counts(rig: EngineRig, state: VmState) -> None:
    """The engine is gone in this state; the VM has a snapshot that counts, and its VMM is there still."""
    manager = await running(rig)
    await manager.suspend("vm_one")
    kept = rig.directory / "kept"
    snapshot(rig).rename(kept)
    await manager.delete("vm_one")
    await started(manager, rig.spec("one", "serve"))
    await abandoned(manager)
    kept.rename(snapshot(rig))
    crash(rig, state)


async def test_a_vm_that_stood_still_for_a_snapshot_that_never_counted_runs_on_after_a_restart(rig: EngineRig) -> None:
    manager = await running(rig)
    held = guest(rig)
    await abandoned(manager)
    held.freeze()
    crash(rig, S.SUSPENDING)
    (rig.directory / "snapshots" / f"{vm_key('vm_one')}.new").mkdir()
    again = rig.manager()
    await again.recover()
    await reaches(again, "vm_one", S.RUNNING)
    assert not held.held
    assert held.cards[-1].generation == 0
    await only_snapshots(rig)
    await again.stop("vm_one")


async def test_a_vm_whose_snapshot_counts_is_suspended_and_its_process_ended_after_a_restart(rig: EngineRig) -> None:
    await crashed_beside_a_snapshot_that_counts(rig, S.SUSPENDING)
    again = rig.manager()
    await again.recover()
    assert again.get("vm_one").status.state is S.SUSPENDED
    assert not rig.vmms.known()
    assert (await again.resume("vm_one")).status.state is S.RUNNING


async def test_a_sleeping_vm_whose_last_vmm_does_not_end_is_not_woken_beside_it(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plasmavmc.machine.RETRY_S", 0.01)
    await crashed_beside_a_snapshot_that_counts(rig, S.SUSPENDED)
    rig.vmms.hanging.add("vm_one")
    again = rig.manager()
    await again.recover()
    for _ in range(2):
        with pytest.raises(HostError, match="after SIGKILL"):
            await again.resume("vm_one")
    vm = again.get("vm_one")
    assert (vm.status.state, vm.status.reason_code) == (S.SUSPENDED, "vmm-unkillable")
    rig.vmms.hanging.clear()
    async with asyncio.timeout(DEADLINE_S):
        revision = again.revision
        while again.get("vm_one").handle is not None:
            revision = await again.changed(revision)
    status = again.get("vm_one").status
    assert (status.state, status.reason, status.reason_code) == (S.SUSPENDED, "", "")
    assert (await again.resume("vm_one")).status.state is S.RUNNING
    assert rig.vmms.living() == {"vm_one"}


async def test_who_sees_that_a_vm_sleeps_can_wake_it_in_the_same_moment(rig: EngineRig) -> None:
    manager = await running(rig)

    async def wake() -> None:
        await reaches(manager, "vm_one", S.SUSPENDED)
        await manager.resume("vm_one")

    waking = asyncio.create_task(wake())
    await manager.suspend("vm_one")
    await waking
    await runs_on(rig, manager)


async def test_a_sleeping_vm_whose_end_failed_can_be_resumed(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")

    async def refused(_key: str) -> None:
        raise HostError("disk-error", "the snapshot cannot be removed")

    with monkeypatch.context() as patches:
        patches.setattr(rig.parts.snapshots, "delete", refused)
        with pytest.raises(HostError):
            await manager.stop("vm_one")
    assert (await manager.resume("vm_one")).status.state is S.RUNNING
    rig.vmms.kill("vm_one")
    await reaches(manager, "vm_one", S.FAILED)
    assert manager.get("vm_one").status.reason_code == "vmm-died", "its end was not taken"


async def test_an_engine_that_lets_go_waits_for_the_end_of_a_sleeping_vm(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    delete, begun, go_on = rig.parts.snapshots.delete, asyncio.Event(), asyncio.Event()

    async def slow(key: str) -> None:
        begun.set()
        await go_on.wait()
        await delete(key)

    monkeypatch.setattr(rig.parts.snapshots, "delete", slow)
    stopping = asyncio.create_task(manager.stop("vm_one"))
    await begun.wait()
    closing = asyncio.create_task(manager.close(keep_vms=True))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not closing.done()
    go_on.set()
    await closing
    assert manager.get("vm_one").status.state is S.STOPPED
    await stopping


@pytest.mark.parametrize("state", [S.SUSPENDING, S.RESUMING])
async def test_a_vm_that_was_in_between_and_whose_vmm_hangs_can_be_stopped_and_keeps_no_engine_from_ending(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch, state: VmState
) -> None:
    monkeypatch.setattr("plasmavmc.machine.RETRY_S", 0.01)
    manager = await running(rig)
    await started(manager, rig.spec("two", "serve"))
    await abandoned(manager)
    for record in rig.parts.records.load():
        if record.spec.id == "vm_one":
            rig.parts.records.save(replace(record, status=replace(record.status, state=state)))

    def says_nothing() -> None:
        raise HostError("guest-silent", "the guest does not answer")

    monkeypatch.setattr(guest(rig), "attach", says_nothing)
    rig.vmms.hanging.add("vm_one")
    again = rig.manager()
    await again.recover()
    with pytest.raises(HostError, match="after SIGKILL"):
        await again.stop("vm_one", 0)
    await again.close(keep_vms=False)
    assert rig.vmms.living() == {"vm_one"}


async def test_a_vm_that_was_just_woken_runs_on_after_a_restart(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    await manager.resume("vm_one")
    held = guest(rig)
    await abandoned(manager)
    held.freeze()
    crash(rig, S.RESUMING)
    again = rig.manager()
    await again.recover()
    await reaches(again, "vm_one", S.RUNNING)
    card = held.cards[-1]
    assert not held.held
    assert card.generation > 0
    assert card.network is not None


@pytest.mark.parametrize("state", [S.SUSPENDING, S.RESUMING])
async def test_a_vm_that_takes_long_to_run_on_after_a_restart_keeps_nobody_waiting(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch, state: VmState
) -> None:
    monkeypatch.setattr("plasmavmc.sleeping.ADOPT_S", 0.01)
    silent = asyncio.Event()

    async def nothing(*_: object) -> None:
        await silent.wait()
        raise GuestError("guest-silent", "the guest did not answer within 60 s")

    manager = await running(rig)
    await abandoned(manager)
    crash(rig, state)
    monkeypatch.setattr("plasmavmc.guest.memory.MemoryGuestChannel.thaw", nothing)
    again = rig.manager()
    async with asyncio.timeout(DEADLINE_S):
        await again.recover()
    assert again.get("vm_one").status.state is state
    await started(again, rig.spec("two", "serve"))
    stopping = asyncio.create_task(again.stop("vm_one"))
    silent.set()
    await reaches(again, "vm_one", S.FAILED)
    await stopping
    assert again.get("vm_one").status.reason_code == "guest-silent"
    assert rig.vmms.living() == {"vm_two"}
    await only_disks(rig, "vm_one", "vm_two")


@pytest.mark.parametrize("state", [S.SUSPENDING, S.RESUMING])
async def test_a_vm_that_ran_on_late_after_a_restart_is_as_any_other(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch, state: VmState
) -> None:
    monkeypatch.setattr("plasmavmc.sleeping.ADOPT_S", 0.01)
    late = asyncio.Event()
    thaw = MemoryGuestChannel.thaw

    async def slow(channel: MemoryGuestChannel, card: GuestCard) -> None:
        await late.wait()
        await thaw(channel, card)

    manager = await running(rig)
    guest(rig).freeze()
    await abandoned(manager)
    crash(rig, state)
    monkeypatch.setattr(MemoryGuestChannel, "thaw", slow)
    again = rig.manager()
    await again.recover()
    late.set()
    await reaches(again, "vm_one", S.RUNNING)
    await runs_on(rig, again)


@pytest.mark.parametrize("state", [S.SUSPENDING, S.RESUMING])
async def test_a_vm_whose_process_and_snapshot_are_gone_has_failed(rig: EngineRig, state: VmState) -> None:
    manager = await running(rig)
    await abandoned(manager)
    rig.vmms.kill("vm_one")
    crash(rig, state)
    again = rig.manager()
    await again.recover()
    assert again.get("vm_one").status.state is S.FAILED
    assert not rig.vmms.known()


async def test_a_snapshot_of_nobody_is_swept(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    rig.parts.records.delete("vm_one")
    again = rig.manager()
    await again.recover()
    await only_snapshots(rig)
    assert await rig.storage.disks() == ()


async def test_an_engine_that_ends_without_its_vms_leaves_no_snapshot(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    await manager.close(keep_vms=False)
    await only_snapshots(rig)


async def test_an_engine_that_lets_go_gives_up_a_suspend(rig: EngineRig) -> None:
    manager = await running(rig)
    await slowly(rig)
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await eventually(rig.vmms.standing_still)
    await manager.close(keep_vms=True)
    await asyncio.gather(suspending, return_exceptions=True)
    assert rig.vmms.living() == {"vm_one"}
    assert not guest(rig).held


# What a VMM leaves that cannot be taken back


async def test_a_vm_whose_last_vmm_could_not_be_forgotten_is_resumed_when_it_can(rig: EngineRig) -> None:
    manager = await running(rig)
    rig.vmms.kept.add("vm_one")
    vm = await manager.suspend("vm_one")
    assert (vm.status.state, vm.handle is None) == (S.SUSPENDED, False)
    with pytest.raises(HostError, match="cannot be taken back"):
        await manager.resume("vm_one")
    vm = manager.get("vm_one")
    assert (vm.status.state, vm.handle is None) == (S.SUSPENDED, False)
    rig.vmms.kept.clear()
    vm = await manager.resume("vm_one")
    assert vm.status.state is S.RUNNING
    assert vm.handle is not None
    await manager.suspend("vm_one")
    assert manager.get("vm_one").handle is None
    assert not rig.vmms.known()


async def test_the_next_engine_takes_back_what_a_sleeping_vm_s_vmm_has_left(rig: EngineRig) -> None:
    manager = await running(rig)
    rig.vmms.kept.add("vm_one")
    await manager.suspend("vm_one")
    await manager.close(keep_vms=True)
    rig.vmms.kept.clear()
    again = rig.manager()
    await again.recover()
    vm = again.get("vm_one")
    assert (vm.status.state, vm.handle) == (S.SUSPENDED, None)
    assert not rig.vmms.known()
    (record,) = rig.parts.records.load()
    assert record.handle is None


async def test_a_vm_that_ended_is_there_until_its_vmm_is_forgotten_and_can_begin_anew_then(rig: EngineRig) -> None:
    manager = await running(rig)
    rig.vmms.kept.add("vm_one")
    assert (await manager.stop("vm_one")).status.state is S.STOPPED
    for order in (manager.restart, manager.delete):
        with pytest.raises(HostError, match="cannot be taken back"):
            await order("vm_one")
        assert manager.get("vm_one").status.state is S.STOPPED
    rig.vmms.kept.clear()
    await manager.restart("vm_one")
    await reaches(manager, "vm_one", S.RUNNING)
    await manager.delete("vm_one")
    assert not rig.vmms.known()
