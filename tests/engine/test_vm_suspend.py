"""Suspending and resuming VMs, on memory parts and with faults: what is left, what is told, what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, ConflictError, GuestError, HostError, NotFoundError
from plasmavmc.guest.api import GuestCard, GuestChannel, GuestConfig
from plasmavmc.guest.boot import BootAssets, find_assets
from plasmavmc.guest.memory import MemoryGuest, Script
from plasmavmc.hypervisor.memory import Faults, MemoryBackend, PretendedVmms
from plasmavmc.manager import VmManager
from plasmavmc.types import ExecSpec, ForkIdentity, VmHandle, vm_key
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import (
    S,
    eventually,
    flip,
    guest,
    members,
    only_snapshots,
    reaches,
    running,
    runs_on,
    slowly,
    snapshot,
    started,
)

# Suspend and resume


async def test_a_suspended_vm_has_no_process_no_address_and_keeps_its_disk(rig: EngineRig) -> None:
    manager = await running(rig)
    vm = await manager.suspend("vm_one")
    assert (vm.status.state, vm.handle, vm.status.endpoints, vm.status.guest_ready) == (S.SUSPENDED, None, (), False)
    assert not rig.vmms.known()
    assert members(rig) == 0
    assert [disk.key for disk in await rig.storage.disks()] == [vm_key("vm_one")]
    await only_snapshots(rig, "vm_one")


async def test_files_of_a_snapshot_are_the_platform_s_alone(rig: EngineRig) -> None:
    await (await running(rig)).suspend("vm_one")
    assert (rig.directory / "snapshots").stat().st_mode & 0o777 == 0o700
    assert snapshot(rig).stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in snapshot(rig).iterdir()} == {
        "state": 0o600,
        "memory": 0o600,
        "manifest": 0o600,
    }


async def test_a_resumed_vm_goes_on_with_time_entropy_and_its_old_address(rig: EngineRig) -> None:
    manager = await running(rig)
    before = manager.get("vm_one").status.endpoints
    config = guest(rig).config
    await manager.suspend("vm_one")
    vm = await manager.resume("vm_one")
    assert vm.status.state is S.RUNNING
    assert vm.status.endpoints == before
    assert guest(rig).config == config
    assert not guest(rig).held
    card = guest(rig).cards[-1]
    assert card.generation == 1
    assert len(card.entropy) == 64
    assert card.unix_time_ns > 0
    assert (card.hostname, card.machine_id) == ("", b"")
    assert card.network is not None
    assert before == (f"tcp:{card.network.ipv4}",)
    await only_snapshots(rig)
    await manager.stop("vm_one")
    assert manager.get("vm_one").status.reason_code == "stopped"


async def test_each_restore_has_a_generation_of_its_own(rig: EngineRig) -> None:
    manager = await running(rig)
    for generation in (1, 2, 3):
        await manager.suspend("vm_one")
        await manager.resume("vm_one")
        assert guest(rig).cards[-1].generation == generation


async def test_a_vm_whose_address_is_taken_meanwhile_gets_and_learns_another(rig: EngineRig) -> None:
    manager = await running(rig)
    old = manager.get("vm_one").status.endpoints
    await manager.suspend("vm_one")
    thief = rig.spec("two", "serve")
    address = rig.parts.records.load()[0].ipv4
    await started(manager, replace(thief, networks=(replace(thief.networks[0], ipv4=address),)))
    vm = await manager.resume("vm_one")
    assert vm.status.endpoints != old
    network = guest(rig).cards[-1].network
    assert network is not None
    assert vm.status.endpoints == (f"tcp:{network.ipv4}",)


async def test_what_it_writes_after_a_resume_goes_on_in_its_log(rig: EngineRig) -> None:
    manager = await running(rig)
    guest(rig).write(b"before\n")
    await manager.suspend("vm_one")
    await manager.resume("vm_one")
    guest(rig).write(b"after\n")
    await manager.stop("vm_one")
    lines = [line.text async for line in manager.logs("vm_one", follow=False, tail=100)]
    assert lines == ["hello", "before", "after"]


async def test_a_thousand_who_resume_share_one_resume(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    woken = await asyncio.gather(*(manager.resume("vm_one") for _ in range(1000)))
    assert {vm.status.state for vm in woken} == {S.RUNNING}
    assert len(guest(rig).cards) == 1


async def test_who_gives_up_waiting_for_a_resume_takes_it_from_nobody(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    impatient = asyncio.create_task(manager.resume("vm_one"))
    patient = asyncio.create_task(manager.resume("vm_one"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).status.state is S.RUNNING


async def test_suspending_and_resuming_again_changes_nothing(rig: EngineRig) -> None:
    manager = await running(rig)
    assert (await manager.resume("vm_one")).status.state is S.RUNNING
    await manager.suspend("vm_one")
    assert (await manager.suspend("vm_one")).status.state is S.SUSPENDED


@pytest.mark.parametrize("attempt", [VmManager.suspend, VmManager.resume])
async def test_what_does_not_run_can_be_neither_suspended_nor_resumed(
    rig: EngineRig, attempt: Callable[[VmManager, str], object]
) -> None:
    manager = rig.manager()
    manager.create(rig.spec("one", "serve"))
    with pytest.raises(ConflictError) as refused:
        await attempt(manager, "vm_one")  # type: ignore[misc]
    assert refused.value.code == "vm-pending"
    with pytest.raises(NotFoundError):
        await attempt(manager, "vm_none")  # type: ignore[misc]


async def test_a_command_in_a_suspended_vm_is_refused_with_what_to_do(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    with pytest.raises(ConflictError) as refused:
        await manager.exec("vm_one", ExecSpec(("echo",)))
    assert refused.value.code == "vm-suspended"
    assert refused.value.resolution == "Resume it first."


async def test_a_suspended_vm_can_be_stopped_and_deleted_without_a_trace(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    await manager.stop("vm_one")
    assert manager.get("vm_one").status.state is S.STOPPED
    await only_snapshots(rig)
    await started(manager, rig.spec("two", "serve"))
    await manager.suspend("vm_two")
    await manager.delete("vm_two")
    await only_snapshots(rig)
    assert [disk.key for disk in await rig.storage.disks()] == [vm_key("vm_one")]


# Suspends that fail


async def test_a_state_that_cannot_be_saved_lets_the_vm_run_on_with_the_right_time(rig: EngineRig) -> None:
    manager = await running(rig)
    rig.vmms.faults.save = HostError("state-not-saved", "QEMU could not write the guest's state")
    with pytest.raises(HostError) as failed:
        await manager.suspend("vm_one")
    assert failed.value.code == "state-not-saved"
    card = guest(rig).cards[-1]
    assert card.generation == 0
    assert card.unix_time_ns > 0
    await runs_on(rig, manager)


async def test_a_full_disk_lets_the_vm_run_on(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await running(rig)

    async def full(*_: object) -> None:
        raise CapacityError("disk-full", "no space left for a snapshot")

    with monkeypatch.context() as patched:
        patched.setattr("plasmavmc.suspending.copy_out", full)
        with pytest.raises(CapacityError):
            await manager.suspend("vm_one")
    await runs_on(rig, manager)


async def test_a_guest_that_cannot_hold_its_workload_runs_on(tmp_path: Path) -> None:
    def script(_config: GuestConfig) -> Script:
        return Script(freeze_failure=GuestError("freeze-not-held", "a process did not stand still"))

    rig = EngineRig(tmp_path, vmms=PretendedVmms(lambda _spec: MemoryGuest(script)))
    manager = await running(rig)
    with pytest.raises(GuestError) as failed:
        await manager.suspend("vm_one")
    assert failed.value.code == "freeze-not-held"
    assert manager.get("vm_one").status.state is S.RUNNING
    await only_snapshots(rig)
    assert not rig.vmms.standing_still()
    await manager.stop("vm_one")


async def test_a_cancelled_suspend_lets_the_vm_run_on(rig: EngineRig) -> None:
    manager = await running(rig)
    await slowly(rig)
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await eventually(rig.vmms.standing_still)
    assert manager.get("vm_one").status.state is S.SUSPENDING
    suspending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await suspending
    await runs_on(rig, manager)


async def test_a_suspend_that_is_cancelled_before_it_began_leaves_the_vm_running(rig: EngineRig) -> None:
    manager = await running(rig)
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await asyncio.sleep(0)
    suspending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await suspending
    await runs_on(rig, manager)


async def test_a_vm_that_is_stopped_while_it_is_suspended_ends_gracefully(rig: EngineRig) -> None:
    manager = await running(rig)
    await slowly(rig)
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await eventually(rig.vmms.standing_still)
    await manager.stop("vm_one")
    with pytest.raises(ConflictError) as told:
        await suspending
    assert told.value.code == "vm-stopping"
    status = manager.get("vm_one").status
    assert (status.state, status.exit_code) == (S.STOPPED, 143)
    await only_snapshots(rig)


async def test_a_vmm_that_dies_while_it_is_suspended_is_told_as_such(rig: EngineRig) -> None:
    manager = await running(rig)
    await slowly(rig)
    suspending = asyncio.create_task(manager.suspend("vm_one"))
    await eventually(rig.vmms.standing_still)
    rig.vmms.kill("vm_one")
    await reaches(manager, "vm_one", S.FAILED)
    suspending.cancel()
    await asyncio.gather(suspending, return_exceptions=True)
    assert manager.get("vm_one").status.reason_code == "vmm-died"
    await only_snapshots(rig)


# Snapshots that are not what was written


@pytest.mark.parametrize("name", ["manifest", "state", "memory"])
@pytest.mark.parametrize("at", [0, -1])
async def test_one_bit_that_changed_is_found_and_nothing_is_loaded(rig: EngineRig, name: str, at: int) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    place = snapshot(rig) / name
    flip(place, 5 if name == "memory" and at == 0 else 3 if name == "memory" else at)
    with pytest.raises(HostError) as refused:
        await manager.resume("vm_one")
    assert refused.value.code == "snapshot-damaged"
    assert not rig.vmms.known()
    assert members(rig) == 0
    vm = manager.get("vm_one")
    assert (vm.status.state, vm.status.reason_code) == (S.SUSPENDED, "snapshot-damaged")
    await only_snapshots(rig, "vm_one")
    await manager.delete("vm_one")
    await only_snapshots(rig)


async def test_every_byte_of_a_manifest_counts(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    place = snapshot(rig) / "manifest"
    whole = place.read_bytes()
    for at in range(0, len(whole), 7):
        flip(place, at)
        with pytest.raises(HostError) as refused:
            await manager.resume("vm_one")
        assert refused.value.code == "snapshot-damaged"
        place.write_bytes(whole)
    assert (await manager.resume("vm_one")).status.state is S.RUNNING


@pytest.mark.parametrize("name", ["manifest", "state", "memory"])
async def test_a_file_that_is_missing_or_cut_short_is_found(rig: EngineRig, name: str) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    place = snapshot(rig) / name
    whole = place.read_bytes()
    place.write_bytes(whole[:10])
    for _ in range(2):
        with pytest.raises(HostError) as refused:
            await manager.resume("vm_one")
        assert refused.value.code == "snapshot-damaged"
        place.unlink(missing_ok=True)
    assert not rig.vmms.known()


async def test_another_vm_s_snapshot_is_refused_by_name(rig: EngineRig) -> None:
    manager = await running(rig)
    await started(manager, rig.spec("two", "serve"))
    for name in ("vm_one", "vm_two"):
        await manager.suspend(name)
    for file in ("manifest", "state", "memory"):
        (snapshot(rig, "vm_one") / file).write_bytes((snapshot(rig, "vm_two") / file).read_bytes())
    with pytest.raises(ConflictError) as refused:
        await manager.resume("vm_one")
    assert refused.value.code == "snapshot-foreign"
    assert "vm differ" in refused.value.brief


@pytest.mark.parametrize("trait", ["program", "devices", "processor"])
async def test_a_host_that_changed_is_named(rig: EngineRig, trait: str) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    rig.vmms.faults.traits = {trait: "another"}
    with pytest.raises(ConflictError) as refused:
        await manager.resume("vm_one")
    assert refused.value.code == "snapshot-foreign"
    assert trait in refused.value.brief
    assert manager.get("vm_one").status.state is S.SUSPENDED
    rig.vmms.faults.traits = {}
    assert (await manager.resume("vm_one")).status.state is S.RUNNING


def keep(rig: EngineRig, assets: BootAssets) -> BootAssets:
    """Put what guests boot from into the host's cache; returns it as it is found there."""
    kernel, guest_of = (rig.directory / "cache" / name for name in ("kernel/old", f"guest/{assets.initrd_hash}"))
    for directory in (kernel, guest_of):
        directory.mkdir(parents=True)
    (kernel / "vmlinux").write_bytes(b"")
    (kernel / "sha256").write_text(f"{assets.kernel_hash}\n")
    (guest_of / "kernel").write_text("old\n")
    found = find_assets(rig.directory / "cache", assets.kernel_hash, assets.initrd_hash)
    assert found is not None
    return found


async def test_a_vm_of_an_earlier_kernel_is_resumed_with_it(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    old = keep(rig, rig.parts.assets)
    rig.parts.assets = replace(old, kernel=Path("/new"), kernel_hash="1" * 64, initrd_hash="1" * 32)
    assert (await manager.resume("vm_one")).status.state is S.RUNNING
    assert rig.vmms.plan("vm_one").kernel == old.kernel
    (record,) = rig.parts.records.load()
    assert (record.kernel, record.init) == (old.kernel_hash, old.initrd_hash)


async def test_a_vm_that_ran_before_the_kernel_changed_is_suspended_as_what_it_is(rig: EngineRig) -> None:
    await (await running(rig)).close(keep_vms=True)
    old = keep(rig, rig.parts.assets)
    manager = rig.manager()
    await manager.recover()
    rig.parts.assets = replace(old, kernel=Path("/new"), kernel_hash="1" * 64, initrd_hash="1" * 32)
    await manager.suspend("vm_one")
    await manager.resume("vm_one")
    assert rig.vmms.plan("vm_one").kernel == old.kernel


async def test_a_kernel_that_is_gone_is_named(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    rig.parts.assets = replace(rig.parts.assets, kernel_hash="1" * 64)
    with pytest.raises(ConflictError, match="kernel differ"):
        await manager.resume("vm_one")


# Resumes that fail


@pytest.mark.parametrize("fault", ["create", "load"])
async def test_a_resume_that_fails_before_the_guest_runs_leaves_it_suspended_and_may_be_tried_again(
    rig: EngineRig, fault: str
) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    rig.vmms.faults = Faults(**{fault: HostError("vmm-refused", "QEMU ended at its start with code 1")})  # type: ignore[arg-type]
    with pytest.raises(HostError):
        await manager.resume("vm_one")
    vm = manager.get("vm_one")
    assert (vm.status.state, vm.status.reason_code, vm.handle) == (S.SUSPENDED, "vmm-refused", None)
    assert not rig.vmms.known()
    assert members(rig) == 0
    rig.vmms.faults = Faults()
    assert "QEMU ended" in vm.status.reason
    status = (await manager.resume("vm_one")).status
    assert (status.state, status.reason_code, status.reason) == (S.RUNNING, "", "")


async def test_a_guest_that_does_not_wake_has_ended_and_its_snapshot_with_it(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    rig.vmms.faults.wake = GuestError("boot-timeout", "the guest did not start")
    with pytest.raises(GuestError):
        await manager.resume("vm_one")
    assert manager.get("vm_one").status.state is S.FAILED
    await only_snapshots(rig)
    assert not rig.vmms.known()
    assert members(rig) == 0


async def test_a_vm_that_is_stopped_while_it_is_resumed_ends(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    resuming = asyncio.create_task(manager.resume("vm_one"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await manager.stop("vm_one")
    with pytest.raises(ConflictError) as told:
        await resuming
    assert told.value.code == "vm-stopping"
    assert manager.get("vm_one").status.state is S.STOPPED
    await only_snapshots(rig)
    assert not rig.vmms.living()


async def test_a_vm_that_is_stopped_while_it_is_copied_ends_gracefully_and_who_copies_is_told(rig: EngineRig) -> None:
    manager = await running(rig, safe=True)
    await slowly(rig)
    copying = asyncio.create_task(manager.fork("vm_one", [ForkIdentity("vm_two", "two")]))
    await eventually(rig.vmms.standing_still)
    assert (await manager.stop("vm_one")).status.exit_code == 143
    with pytest.raises(ConflictError) as told:
        await copying
    assert told.value.code == "vm-stopping"


async def test_a_vm_whose_snapshot_is_used_up_wakes_before_it_is_stopped_gracefully(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    waking, go_on, wake = asyncio.Event(), asyncio.Event(), MemoryBackend.wake_vm

    async def slow(backend: MemoryBackend, handle: VmHandle, card: GuestCard) -> GuestChannel:
        waking.set()
        await go_on.wait()
        return await wake(backend, handle, card)

    monkeypatch.setattr(MemoryBackend, "wake_vm", slow)
    resuming = asyncio.create_task(manager.resume("vm_one"))
    await waking.wait()
    stopping = asyncio.create_task(manager.stop("vm_one"))
    await asyncio.sleep(0)
    go_on.set()
    status = (await stopping).status
    assert (status.state, status.reason_code, status.exit_code) == (S.STOPPED, "stopped", 143)
    await resuming
    await only_snapshots(rig)
