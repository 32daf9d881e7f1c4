"""VMs with volumes that they may have for a time: fenced before they begin, as long as they run, and no longer."""

from __future__ import annotations

import time

import pytest

from plasmavmc.hypervisor.backend import VmPlan
from plasmavmc.hypervisor.memory import PretendedVmms
from plasmavmc.manager import VmManager
from plasmavmc.types import VmSpec, vm_key
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, reaches, started
from tests.engine.volume_parts import failed, mount, running, spec

ONE, TWO = vm_key("vm_one"), vm_key("vm_two")
SOON = time.monotonic() + 3600.0


async def test_a_vm_is_fenced_before_its_vmm_is_made(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await running(rig)
    await manager.delete("vm_one")
    seen: list[dict[str, float]] = []
    spawn = PretendedVmms.spawn

    def watched(vmms: PretendedVmms, vm: VmSpec, plan: VmPlan) -> object:
        seen.append(dict(rig.host.fences))
        return spawn(vmms, vm, plan)

    monkeypatch.setattr(PretendedVmms, "spawn", watched)
    await manager.fence({"vol_1": SOON})
    await started(manager, spec(rig, "two"))
    assert seen == [{TWO: SOON}]


async def test_moments_are_moved_for_those_that_have_the_volume_and_no_others(rig: EngineRig) -> None:
    manager = await running(rig)
    await started(manager, rig.spec("two", "serve"))
    for moment in (SOON, SOON + 2):
        await manager.fence({"vol_1": moment, "vol_9": 0.0})
        assert rig.host.fences == {ONE: moment}
    await manager.fence({})
    assert rig.host.fences == {}


async def test_the_volume_whose_time_is_over_first_counts(rig: EngineRig) -> None:
    manager = await running(rig, (mount("vol_1"), mount("vol_2", "/two", read_only=True)))
    await manager.fence({"vol_1": SOON + 9, "vol_2": SOON})
    assert rig.host.fences == {ONE: SOON}


async def test_a_fence_goes_with_its_vm(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.fence({"vol_1": SOON})
    await manager.stop("vm_one", 0)
    assert rig.host.fences == {}
    await manager.fence({"vol_1": SOON + 1})
    assert rig.host.fences == {}, "what has ended is not fenced again"


async def test_one_that_sleeps_is_fenced_when_it_wakes(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    await manager.fence({"vol_1": SOON})
    assert rig.host.fences == {}
    await manager.resume("vm_one")
    assert rig.host.fences == {ONE: SOON}


async def test_none_begins_or_wakes_with_a_volume_whose_time_is_over(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    await manager.fence({"vol_1": time.monotonic()})
    with pytest.raises(Exception, match="is over"):
        await manager.resume("vm_one")
    assert manager.get("vm_one").status.state is S.SUSPENDED
    await manager.delete("vm_one")
    assert await failed(manager, spec(rig, "two")) == "volume-fenced"
    assert rig.host.fences == {}


async def test_what_was_killed_at_its_moment_is_told_so(rig: EngineRig) -> None:
    manager = await running(rig)
    await _killed_at_its_moment(rig, manager)
    status = manager.get("vm_one").status
    assert (status.state, status.reason_code) == (S.FAILED, "fenced")


async def _killed_at_its_moment(rig: EngineRig, manager: VmManager) -> None:
    await manager.fence({"vol_1": time.monotonic()})
    rig.vmms.kill("vm_one")
    await reaches(manager, "vm_one", S.FAILED)
