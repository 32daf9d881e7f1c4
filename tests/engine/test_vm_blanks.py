"""VMs that begin as copies of a guest booted ahead, on memory parts and with faults: whose they are, and what is left."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.blanks import AFTER_FAILURE_S, Blank, Blanks, Shape
from plasmavmc.errors import HostError
from plasmavmc.guest.memory import MemoryGuest
from plasmavmc.hypervisor.memory import PretendedVmms
from plasmavmc.manager import VmManager
from plasmavmc.types import MIB, VmResources, VmSpec
from tests.engine.engine_rig import EngineRig, script
from tests.engine.suspend_rig import S, guest, only_disks, reaches, started


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def manager(rig: EngineRig, clock: Clock) -> AsyncIterator[VmManager]:
    manager = rig.manager()
    rig.parts.blanks = Blanks(1, clock)
    yield manager
    await manager.close(keep_vms=False)
    assert not rig.vmms.living()
    assert not rig.parts.blanks.shapes


async def runs(rig: EngineRig, manager: VmManager, name: str, **changes: object) -> VmSpec:
    """A VM that runs, when what it gave rise to is done."""
    spec = replace(rig.spec(name, "serve"), **changes)  # type: ignore[arg-type]
    await started(manager, spec)
    await rig.parts.blanks.settled()
    return spec


def begun_as_copy(rig: EngineRig, name: str) -> bool:
    """It was let go on, once, by who made it."""
    return len(guest(rig, f"vm_{name}").cards) == 1


async def test_the_first_of_a_shape_is_booted_and_the_next_begins_as_a_copy(rig: EngineRig, manager: VmManager) -> None:
    await runs(rig, manager, "one")
    assert not begun_as_copy(rig, "one")
    assert rig.vmms.living() == {"vm_one"}, "the guest that was booted ahead has ended"
    two = await runs(rig, manager, "two", env={"TOKEN": "its own"})
    assert begun_as_copy(rig, "two")
    told = guest(rig, "vm_two").config
    assert told is not None
    assert (told.env["TOKEN"], told.hostname) == ("its own", "two")
    assert told.network is not None
    assert manager.get(two.id).status.endpoints == (f"tcp:{told.network.ipv4}",)
    await only_disks(rig, "vm_one", "vm_two")


async def test_a_copy_learns_time_and_entropy_before_its_configuration(rig: EngineRig, manager: VmManager) -> None:
    await runs(rig, manager, "one")
    await runs(rig, manager, "two")
    await runs(rig, manager, "three")
    (two,), (three,) = guest(rig, "vm_two").cards, guest(rig, "vm_three").cards
    assert two.unix_time_ns > 0
    assert len(two.entropy) == 64
    assert two.entropy != three.entropy
    assert (two.generation, two.network, two.hostname) == (0, None, "")


@pytest.mark.parametrize("safe", [True, False])
async def test_a_guest_booted_ahead_has_the_devices_of_those_that_begin_as_its_copies(
    tmp_path: Path, clock: Clock, safe: bool
) -> None:
    """A VM that may be copied has no balloon, and a state goes with the devices that it was taken with."""
    booted: list[VmSpec] = []

    def boot(spec: VmSpec) -> MemoryGuest:
        booted.append(spec)
        return MemoryGuest(script)

    rig = EngineRig(tmp_path, vmms=PretendedVmms(boot))
    manager = rig.manager()
    rig.parts.blanks = Blanks(1, clock)
    await runs(rig, manager, "one", snapshot_safe=safe)
    one, ahead = booted
    assert one.id == "vm_one"
    assert ahead.snapshot_safe is safe
    await manager.close(keep_vms=False)


async def test_nothing_is_made_where_nobody_asked_for_it(rig: EngineRig) -> None:
    manager = rig.manager()
    await runs(rig, manager, "one")
    await runs(rig, manager, "two")
    assert not rig.parts.blanks.shapes
    assert not begun_as_copy(rig, "two")
    await manager.close(keep_vms=False)


async def test_another_shape_is_booted_and_takes_the_place_of_the_one_used_least(
    rig: EngineRig, manager: VmManager
) -> None:
    larger = VmResources(memory_bytes=512 * MIB)
    await runs(rig, manager, "one")
    (first,) = rig.parts.blanks.shapes
    await runs(rig, manager, "two", resources=larger)
    assert not begun_as_copy(rig, "two")
    (second,) = rig.parts.blanks.shapes
    assert (first.memory_bytes, second.memory_bytes) == (128 * MIB, 512 * MIB)
    await runs(rig, manager, "three", resources=larger)
    assert begun_as_copy(rig, "three")


async def test_a_host_that_changed_is_another_shape(rig: EngineRig, manager: VmManager) -> None:
    await runs(rig, manager, "one")
    rig.vmms.faults.traits = {"program": "upgraded"}
    await runs(rig, manager, "two")
    assert not begun_as_copy(rig, "two")


@pytest.mark.parametrize("fault", ["load", "wake"])
async def test_a_copy_that_does_not_come_up_is_booted_after_all(
    rig: EngineRig, manager: VmManager, clock: Clock, fault: str
) -> None:
    await runs(rig, manager, "one")
    setattr(rig.vmms.faults, fault, HostError("state-refused", "not this one"))
    await runs(rig, manager, "two")
    assert not begun_as_copy(rig, "two")
    assert not rig.parts.blanks.shapes, "it is not tried again at once"
    setattr(rig.vmms.faults, fault, None)
    clock.now += AFTER_FAILURE_S
    await runs(rig, manager, "three")
    await runs(rig, manager, "four")
    assert (begun_as_copy(rig, "three"), begun_as_copy(rig, "four")) == (False, True)
    await only_disks(rig, "vm_one", "vm_two", "vm_three", "vm_four")


async def test_a_blank_that_cannot_be_made_harms_nobody(rig: EngineRig, manager: VmManager) -> None:
    rig.vmms.faults.save = HostError("state-not-saved", "no")
    await runs(rig, manager, "one")
    await runs(rig, manager, "two")
    assert not rig.parts.blanks.shapes
    assert rig.vmms.living() == {"vm_one", "vm_two"}
    assert rig.vmms.standing_still() == set()


async def test_an_engine_that_ends_while_one_is_made_leaves_nothing(rig: EngineRig) -> None:
    manager = rig.manager()
    rig.parts.blanks = Blanks(1)
    rig.vmms.faults.save_s = 3600.0
    await started(manager, rig.spec("one", "serve"))
    await manager.close(keep_vms=True)
    assert rig.vmms.living() == {"vm_one"}


async def test_a_copy_is_suspended_and_resumed_as_any_vm(rig: EngineRig, manager: VmManager) -> None:
    await runs(rig, manager, "one")
    await runs(rig, manager, "two")
    await manager.suspend("vm_two")
    await manager.resume("vm_two")
    assert manager.get("vm_two").status.state is S.RUNNING


async def test_a_copy_that_cannot_start_its_workload_fails_and_leaves_nothing(
    rig: EngineRig, manager: VmManager
) -> None:
    await runs(rig, manager, "one")
    spec = rig.spec("two", "missing")
    manager.create(spec)
    manager.start(spec.id)
    await reaches(manager, spec.id, S.FAILED)
    assert manager.get(spec.id).status.reason_code == "no-such-command"
    assert rig.vmms.living() == {"vm_one"}


async def test_who_copies_needs_the_blank_no_more() -> None:
    memory, state = os.memfd_create("memory"), os.memfd_create("state")
    os.pwrite(memory, b"content", 0)
    os.ftruncate(memory, 4096)
    blank = Blank(memory, state)
    async with blank.copy() as copy:
        blank.close()
        await copy.filled()
        assert os.pread(copy.memory, 7, 0) == b"content"


async def test_one_is_made_at_a_time() -> None:
    blanks = Blanks(2)
    made = []

    async def make() -> Blank:
        made.append(1)
        return Blank(os.memfd_create("memory"), os.memfd_create("state"))

    one, two = Shape("memory", 1, frozenset()), Shape("memory", 2, frozenset())
    blanks.want(one, make)
    blanks.want(two, make)
    await blanks.settled()
    assert blanks.shapes == {one}
    blanks.want(one, make)
    blanks.want(two, make)
    await blanks.settled()
    assert (blanks.shapes, len(made)) == ({one, two}, 2)
    await blanks.aclose()
    assert not blanks.shapes
