"""Orders to volumes, on memory parts: what is made of them while a VM has one, asked again, and refused."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from dataclasses import replace

import pytest

from plasmavmc.errors import (
    ConflictError,
    GuestError,
    HostError,
    InvalidSpecError,
)
from plasmavmc.types import MIB
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import eventually, guest
from tests.engine.volume_parts import KEY, SIZE, running, view

# Orders while a VM has it


async def test_a_volume_grows_under_a_running_vm(rig: EngineRig) -> None:
    manager = await running(rig)
    for _ in range(2):
        await manager.volumes.resize("vol_1", 2 * SIZE)
    assert rig.vmms.grown("vm_one") == {2: 2 * SIZE}
    assert guest(rig).orders == [("grow", 2, 2 * SIZE)] * 2
    assert (await view(manager)).size_bytes == 2 * SIZE


async def test_a_guest_that_cannot_grow_its_volume_is_told_and_the_volume_has_grown(rig: EngineRig) -> None:
    manager = await running(rig)
    guest(rig)._script = replace(guest(rig)._script, volume_failure=GuestError("volume-bad-volume", "no"))
    with pytest.raises(GuestError):
        await manager.volumes.resize("vol_1", 2 * SIZE)
    assert (await view(manager)).size_bytes == 2 * SIZE


async def test_a_snapshot_of_a_running_vm_is_taken_while_it_stands_still(rig: EngineRig) -> None:
    manager = await running(rig)
    seen: list[tuple[bool, set[int]]] = []
    take = rig.volumes.snapshot

    async def watched(volume_id: str, snapshot_id: str) -> None:
        seen.append(("vm_one" in rig.vmms.standing_still(), set(guest(rig).frozen)))
        await take(volume_id, snapshot_id)

    rig.volumes.snapshot = watched  # type: ignore[method-assign]
    await manager.volumes.snapshot("vol_1", "snap_1")
    await manager.volumes.snapshot("vol_1", "snap_2", freeze=True)
    assert seen == [(True, set()), (True, {2})]
    assert not rig.vmms.standing_still()
    assert guest(rig).orders == [("freeze", 2, 0), ("thaw", 2, 0)]


async def test_a_snapshot_that_fails_lets_the_vm_go_on_and_leaves_nothing(rig: EngineRig) -> None:
    manager = await running(rig)

    async def broken(_volume_id: str, _snapshot_id: str) -> None:
        raise HostError("storage-error", "I/O error")

    rig.volumes.snapshot = broken  # type: ignore[method-assign]
    with pytest.raises(HostError):
        await manager.volumes.snapshot("vol_1", "snap_1", freeze=True)
    assert not rig.vmms.standing_still()
    assert not guest(rig).frozen
    assert (await view(manager)).snapshots == ()


async def test_an_engine_that_dies_while_a_vm_stands_still_leaves_one_that_runs_on(rig: EngineRig) -> None:
    manager = await running(rig)

    async def endless(_volume_id: str, _snapshot_id: str) -> None:
        await asyncio.Event().wait()

    take, rig.volumes.snapshot = rig.volumes.snapshot, endless  # type: ignore[method-assign]
    taking = asyncio.create_task(manager.volumes.snapshot("vol_1", "snap_1"))
    await eventually(rig.vmms.standing_still)
    again = rig.manager()
    await again.recover()
    assert not rig.vmms.standing_still()
    rig.volumes.snapshot = take  # type: ignore[method-assign]
    await again.volumes.snapshot("vol_1", "snap_1")
    assert [snapshot.snapshot_id for snapshot in (await view(again)).snapshots] == ["snap_1"]
    taking.cancel()
    await asyncio.wait({taking})


async def test_a_guest_that_wrote_before_the_snapshot_was_taken_has_no_snapshot(rig: EngineRig) -> None:
    manager = await running(rig)
    take = rig.volumes.snapshot

    async def slow(volume_id: str, snapshot_id: str) -> None:
        await take(volume_id, snapshot_id)
        guest(rig).frozen.clear()  # it could not wait any longer

    rig.volumes.snapshot = slow  # type: ignore[method-assign]
    with pytest.raises(GuestError) as caught:
        await manager.volumes.snapshot("vol_1", "snap_1", freeze=True)
    assert caught.value.code == "volume-not-frozen"
    assert (await view(manager)).snapshots == ()


async def test_a_snapshot_is_told_of_once_it_is_sure_to_be_one(rig: EngineRig) -> None:
    manager = await running(rig)
    take, drop = rig.volumes.snapshot, rig.volumes.delete_snapshot
    seen: list[int] = []

    async def slow(volume_id: str, snapshot_id: str) -> None:
        await take(volume_id, snapshot_id)
        seen.append(len((await view(manager)).snapshots))
        guest(rig).frozen.clear()  # it could not wait any longer

    async def broken(_snapshot_id: str) -> None:
        raise HostError("storage-error", "I/O error")

    rig.volumes.snapshot, rig.volumes.delete_snapshot = slow, broken  # type: ignore[method-assign]
    with pytest.raises(HostError):
        await manager.volumes.snapshot("vol_1", "snap_1", freeze=True)
    seen.append(len((await view(manager)).snapshots))
    rig.volumes.snapshot, rig.volumes.delete_snapshot = take, drop  # type: ignore[method-assign]
    with ExitStack() as descriptors_of_its_vmm:
        file = await rig.volumes.open("vol_1")
        descriptors_of_its_vmm.callback(os.close, file)
        os.pwrite(file, b"written since", MIB)
    await manager.volumes.snapshot("vol_1", "snap_1", freeze=True)
    assert seen == [0, 0]
    assert len((await view(manager)).snapshots) == 1
    async with manager.volumes.content.reading("snap_1") as reader:
        assert await reader.read(MIB, 13) == b"written since"


async def test_a_volume_that_a_vm_has_is_neither_restored_nor_deleted(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.volumes.snapshot("vol_1", "snap_1")
    for order in (manager.volumes.restore("vol_1", "snap_1"), manager.volumes.delete("vol_1")):
        with pytest.raises(ConflictError) as caught:
            await order
        assert caught.value.code == "volume-held"
    await manager.stop("vm_one")
    await manager.volumes.restore("vol_1", "snap_1")
    await manager.volumes.delete_snapshot("snap_1")
    await manager.volumes.delete("vol_1")
    assert await manager.volumes.list() == ()


# Orders


async def test_orders_are_idempotent_by_their_ids(rig: EngineRig) -> None:
    volumes = rig.manager().volumes
    for _ in range(2):
        await volumes.create("vol_1", SIZE)
        await volumes.create("vol_2", SIZE, key=KEY)
        await volumes.snapshot("vol_1", "snap_1")
        await volumes.clone("snap_1", "vol_3", SIZE)
        await volumes.resize("vol_1", 2 * SIZE)
        await volumes.restore("vol_1", "snap_1")
        if (await volumes.list())[0].size_bytes == 2 * SIZE:
            with pytest.raises(ConflictError) as caught:
                await volumes.create("vol_1", SIZE)
            assert caught.value.code == "volume-exists"
            break
    for _ in range(2):
        await volumes.delete("vol_3")
        await volumes.delete_snapshot("snap_1")
        await volumes.delete("vol_1")
        await volumes.delete("vol_2")
    assert await volumes.list() == ()


async def test_what_exists_with_another_shape_is_a_conflict(rig: EngineRig) -> None:
    volumes = rig.manager().volumes
    await volumes.create("vol_1", SIZE)
    await volumes.create("vol_2", SIZE, key=KEY)
    await volumes.snapshot("vol_1", "snap_1")
    for order, code in (
        (volumes.create("vol_1", 2 * SIZE), "volume-exists"),
        (volumes.create("vol_1", SIZE, key=KEY), "volume-exists"),
        (volumes.create("vol_2", SIZE), "volume-exists"),
        (volumes.create("vol_2", SIZE, key=bytes(32)), "wrong-key"),
        (volumes.clone("snap_1", "vol_2", 2 * SIZE), "volume-exists"),
        (volumes.snapshot("vol_2", "snap_1"), "snapshot-exists"),
        (volumes.unlock("vol_1", KEY), "not-encrypted"),
        (volumes.delete("vol_1"), "volume-has-snapshots"),
    ):
        with pytest.raises(ConflictError) as caught:
            await order
        assert caught.value.code == code


@pytest.mark.parametrize("size", [0, -MIB, MIB, 16 * MIB + 1, 1 << 60])
async def test_a_size_that_makes_no_sense_is_refused(rig: EngineRig, size: int) -> None:
    volumes = rig.manager().volumes
    await volumes.create("vol_1", SIZE)
    await volumes.snapshot("vol_1", "snap_1")
    for order in (
        volumes.create("vol_2", size),
        volumes.clone("snap_1", "vol_2", size),
        volumes.resize("vol_1", size),
    ):
        with pytest.raises(InvalidSpecError) as caught:
            await order
        assert caught.value.field == "size_bytes"


async def test_a_volume_does_not_shrink(rig: EngineRig) -> None:
    volumes = rig.manager().volumes
    await volumes.create("vol_1", SIZE)
    await volumes.snapshot("vol_1", "snap_1")
    for order in (volumes.resize("vol_1", SIZE // 2), volumes.clone("snap_1", "vol_2", SIZE // 2)):
        with pytest.raises(InvalidSpecError):
            await order


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
async def test_a_key_has_256_bits(rig: EngineRig, key: bytes) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        await rig.manager().volumes.create("vol_1", SIZE, key=key)
    assert caught.value.field == "key"
