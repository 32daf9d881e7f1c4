"""Copies of running VMs, on memory parts and with faults."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from plasmavmc.errors import ConflictError, HostError, PlasmaError
from plasmavmc.types import ForkIdentity, vm_key
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import (
    DEADLINE_S,
    S,
    eventually,
    guest,
    members,
    only_disks,
    reaches,
    running,
    runs_on,
    snapshot,
)


def identities(count: int) -> list[ForkIdentity]:
    return [ForkIdentity(f"vm_copy{number}", f"copy{number}") for number in range(count)]


async def test_copies_are_vms_with_everything_of_their_own(rig: EngineRig) -> None:
    manager = await running(rig, safe=True)
    await manager.fork("vm_one", identities(3))
    for number in range(3):
        await reaches(manager, f"vm_copy{number}", S.RUNNING)
    vms = manager.list_vms()
    assert len({vm.status.endpoints for vm in vms}) == 4
    assert not guest(rig).held
    assert guest(rig).cards[-1].generation == 0
    cards = [guest(rig, f"vm_copy{number}").cards[-1] for number in range(3)]
    assert [card.hostname for card in cards] == ["copy0", "copy1", "copy2"]
    assert {card.generation for card in cards} == {1}
    for values in (
        {card.entropy for card in cards},
        {card.machine_id for card in cards},
        {card.network.mac for card in cards if card.network},
        {card.network for card in cards},
    ):
        assert len(values) == 3
    await only_disks(rig, *(vm.spec.id for vm in vms))
    await manager.stop("vm_copy1")
    assert manager.get("vm_one").status.state is S.RUNNING
    await manager.close(keep_vms=False)
    assert not rig.vmms.living()


async def test_what_a_copy_writes_is_in_its_own_log_from_the_start(rig: EngineRig) -> None:
    manager = await running(rig, safe=True)
    guest(rig).write(b"before\n")
    await eventually(lambda: not guest(rig)._unacknowledged)
    await manager.fork("vm_one", identities(1))
    await reaches(manager, "vm_copy0", S.RUNNING)
    guest(rig, "vm_copy0").write(b"mine\n")
    await manager.stop("vm_copy0")
    assert [line.text async for line in manager.logs("vm_copy0", follow=False, tail=10)] == ["mine"]


async def test_a_vm_that_is_not_declared_safe_is_not_copied(rig: EngineRig) -> None:
    manager = await running(rig)
    with pytest.raises(ConflictError) as refused:
        await manager.fork("vm_one", identities(1))
    assert refused.value.code == "not-snapshot-safe"
    assert len(manager.list_vms()) == 1
    assert not guest(rig).cards


@pytest.mark.parametrize(
    ("identity", "error"),
    [
        (ForkIdentity("vm_one", "x"), ConflictError),
        (ForkIdentity("VM", "x"), PlasmaError),
        (ForkIdentity("vm_x", "Not A Name"), PlasmaError),
    ],
)
async def test_a_copy_that_cannot_be_is_refused_before_anything_is_done(
    rig: EngineRig, identity: ForkIdentity, error: type[PlasmaError]
) -> None:
    manager = await running(rig, safe=True)
    for copies in ([identity], [*identities(1), *identities(1)]):
        with pytest.raises(error if len(copies) == 1 else ConflictError):
            await manager.fork("vm_one", copies)
    assert len(manager.list_vms()) == 1
    assert not guest(rig).cards


async def test_a_fork_that_fails_leaves_the_origin_running_and_no_copy(rig: EngineRig) -> None:
    manager = await running(rig, safe=True)
    rig.vmms.faults.save = HostError("state-not-saved", "QEMU could not write the guest's state")
    with pytest.raises(HostError):
        await manager.fork("vm_one", identities(2))
    assert len(manager.list_vms()) == 1
    assert [disk.key for disk in await rig.storage.disks()] == [vm_key("vm_one")]
    await runs_on(rig, manager)


async def test_a_copy_that_fails_is_alone_and_leaves_nothing(rig: EngineRig) -> None:
    manager = await running(rig, safe=True)
    rig.vmms.faults.load = HostError("state-refused", "QEMU did not take the guest's state")
    await manager.fork("vm_one", identities(2))
    for number in range(2):
        await reaches(manager, f"vm_copy{number}", S.FAILED)
    assert manager.get("vm_one").status.state is S.RUNNING
    assert rig.vmms.known() == {"vm_one"}
    await only_disks(rig, "vm_one")
    assert members(rig) == 1


async def test_a_copy_can_be_suspended_and_resumed_and_only_then_copied(rig: EngineRig) -> None:
    manager = await running(rig, safe=True)
    await manager.fork("vm_one", identities(1))
    await reaches(manager, "vm_copy0", S.RUNNING)
    with pytest.raises(ConflictError) as refused:
        await manager.fork("vm_copy0", [ForkIdentity("vm_grandchild", "grandchild")])
    assert refused.value.code == "copy-of-copy"
    await manager.suspend("vm_copy0")
    assert {path.name for path in snapshot(rig, "vm_copy0").iterdir()} == {"state", "manifest"}
    await manager.resume("vm_copy0")
    assert guest(rig, "vm_copy0").cards[-1].generation == 2
    await manager.fork("vm_copy0", [ForkIdentity("vm_grandchild", "grandchild")])
    await reaches(manager, "vm_grandchild", S.RUNNING)


async def test_a_copy_is_adopted_after_a_restart_of_the_engine(rig: EngineRig) -> None:
    manager = await running(rig, safe=True)
    await manager.fork("vm_one", identities(1))
    await reaches(manager, "vm_copy0", S.RUNNING)
    await manager.close(keep_vms=True)
    again = rig.manager()
    await again.recover()
    assert {vm.status.state for vm in again.list_vms()} == {S.RUNNING}
    await again.suspend("vm_copy0")
    await again.resume("vm_copy0")


async def test_a_template_leaves_no_descriptor_and_no_disk(rig: EngineRig) -> None:
    manager = await running(rig, safe=True)

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    await manager.fork("vm_one", identities(2))
    for number in range(2):
        await reaches(manager, f"vm_copy{number}", S.RUNNING)
        await manager.delete(f"vm_copy{number}")
    await manager.suspend("vm_one")
    await manager.resume("vm_one")
    async with asyncio.timeout(DEADLINE_S):
        while descriptors() != before:  # noqa: ASYNC110 - nothing tells of a closed descriptor
            await asyncio.sleep(0.001)
