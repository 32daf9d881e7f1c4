"""Room on the disk for VMs that go to sleep: it is asked for before, and counted for all that do so at once."""

from __future__ import annotations

import asyncio
import os

import pytest

from plasmavmc.errors import CapacityError, PlasmaError
from plasmavmc.snapshots.room import RESERVE_BYTES, Room
from plasmavmc.storage.sparse import allocated_bytes
from plasmavmc.types import MIB
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, eventually, guest, reaches, running, runs_on, slowly, started

MEMORY = 128 * MIB
"""Of a VM of the rig."""
FREE = RESERVE_BYTES + 100


def leave(rig: EngineRig, size: int) -> None:
    """So much of the disk is left."""
    rig.storage._capacity = size


def takes(room: Room, wanted: int, free: int) -> None:
    with room.claim(wanted, free):
        return


def test_what_is_claimed_counts_until_it_is_given_back() -> None:
    room = Room()
    with pytest.raises(CapacityError, match="there is room for 0 MiB"):
        takes(room, 101, FREE)
    with room.claim(60, FREE):
        with pytest.raises(CapacityError):
            takes(room, 41, FREE)
        takes(room, 40, FREE)
    with pytest.raises(RuntimeError), room.claim(100, FREE):
        raise RuntimeError("given up")
    takes(room, 100, FREE)


async def test_a_vm_whose_memory_has_no_room_runs_on_and_is_not_even_held(rig: EngineRig) -> None:
    manager = await running(rig)
    leave(rig, RESERVE_BYTES + MEMORY - 1)
    with pytest.raises(CapacityError) as error:
        await manager.suspend("vm_one")
    assert error.value.code == "disk-full"
    assert manager.get("vm_one").status.state is S.RUNNING
    assert guest(rig).cards == [], "it was never told to go on, for it never stood still"
    leave(rig, RESERVE_BYTES + MEMORY)
    await runs_on(rig, manager)


async def test_vms_that_are_suspended_at_once_do_not_fill_the_disk_together(rig: EngineRig) -> None:
    manager = await running(rig)
    await started(manager, rig.spec("two", "serve"))
    leave(rig, RESERVE_BYTES + 2 * MEMORY - 1)
    await slowly(rig)
    first = asyncio.create_task(manager.suspend("vm_one"))
    await eventually(rig.vmms.standing_still)
    with pytest.raises(CapacityError):
        async with asyncio.timeout(5.0):
            await manager.suspend("vm_two")
    first.cancel()
    with pytest.raises((asyncio.CancelledError, PlasmaError)):
        await first
    rig.vmms.faults.save_s = 0
    await manager.suspend("vm_two")
    await reaches(manager, "vm_two", S.SUSPENDED)
    await manager.close(keep_vms=False)


def test_a_memory_that_was_hardly_touched_takes_hardly_any_room() -> None:
    """What a QEMU that shares its guest's memory is counted with."""
    memory = os.memfd_create("guest", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, 64 * MIB)
        assert allocated_bytes(memory) == 0
        os.pwrite(memory, b"x" * MIB, 5 * MIB)
        assert MIB <= allocated_bytes(memory) <= 4 * MIB
    finally:
        os.close(memory)
