"""VMs with volumes, on memory parts: who has what, what reaches VMM and guest, what holds them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import (
    ConflictError,
    GuestError,
    HostError,
    InvalidSpecError,
    NotFoundError,
    UnavailableError,
)
from plasmavmc.guest.api import GuestVolume
from plasmavmc.manager import VmManager
from plasmavmc.types import MIB, DiskFormat, DiskSource, DiskSpec, ForkIdentity, RateLimit, VmSpec
from plasmavmc.volumes import VolumeView
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, eventually, guest, reaches, started

SIZE = 32 * MIB
KEY = bytes(range(32))


@pytest.fixture
def rig(tmp_path: Path) -> EngineRig:
    return EngineRig(tmp_path)


def mount(volume_id: str = "vol_1", destination: str = "/data", *, read_only: bool = False) -> DiskSpec:
    return DiskSpec(volume_id, DiskSource.VOLUME, read_only, reference=volume_id, destination=destination)


def spec(rig: EngineRig, name: str = "one", volumes: Sequence[DiskSpec] = (mount(),)) -> VmSpec:
    return replace(rig.spec(name, "serve"), volumes=tuple(volumes))


async def running(rig: EngineRig, volumes: Sequence[DiskSpec] = (mount(),), *, key: bytes | None = None) -> VmManager:
    """A VM with these volumes, made for it."""
    manager = rig.manager()
    for volume in volumes:
        await manager.volumes.create(volume.reference, SIZE, key=key)
    await started(manager, spec(rig, volumes=volumes))
    return manager


async def view(manager: VmManager, volume_id: str = "vol_1") -> VolumeView:
    return next(each for each in await manager.volumes.list() if each.volume_id == volume_id)


async def failed(manager: VmManager, vm: VmSpec) -> str:
    """Why a VM does not start."""
    manager.create(vm)
    manager.start(vm.id)
    await reaches(manager, vm.id, S.FAILED)
    return manager.get(vm.id).status.reason_code


# What reaches VMM and guest


async def test_volumes_come_after_the_vms_own_disks_and_the_guest_is_told_where(rig: EngineRig) -> None:
    volumes = (mount("vol_1", "/srv/data"), mount("vol_2", "/srv", read_only=True))
    await running(rig, volumes)
    disks = rig.vmms.plan("vm_one").disks
    assert [(disk.id, disk.read_only) for disk in disks[2:]] == [("vol_1", False), ("vol_2", True)]
    config = guest(rig).config
    assert config is not None
    assert config.volumes == (GuestVolume(3, "/srv", read_only=True), GuestVolume(2, "/srv/data"))


async def test_a_volume_is_held_to_its_rate(rig: EngineRig) -> None:
    limit = RateLimit(10 * MIB, 100)
    await running(rig, (replace(mount(), limit=limit),))
    assert rig.vmms.plan("vm_one").disks[2].limit == limit


async def test_what_a_vm_wrote_is_there_for_the_next_one(rig: EngineRig) -> None:
    manager = await running(rig)
    file = await rig.volumes.open("vol_1")
    os.pwrite(file, b"kept", MIB)
    await manager.delete("vm_one")
    assert (await view(manager)).vm_id == ""
    await started(manager, spec(rig, "two"))
    assert os.pread(file, 4, MIB) == b"kept"
    os.close(file)
    assert (await view(manager)).vm_id == "vm_two"


async def test_a_volume_that_is_not_there_fails_the_start_and_leaves_nothing(rig: EngineRig) -> None:
    manager = rig.manager()
    assert await failed(manager, spec(rig)) == "volume-not-found"
    assert not rig.vmms.known()
    await manager.volumes.create("vol_1", SIZE)
    assert (await view(manager)).vm_id == ""


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (replace(mount(), destination="data"), "volumes[0].destination"),
        (replace(mount(), destination="/"), "volumes[0].destination"),
        (replace(mount(), destination="/data/../etc"), "volumes[0].destination"),
        (replace(mount(), destination="/data//x"), "volumes[0].destination"),
        (replace(mount(), destination="/data/"), "volumes[0].destination"),
        (replace(mount(), destination="/da\0ta"), "volumes[0].destination"),
        (replace(mount(), destination="/" + "d" * 255), "volumes[0].destination"),
        (replace(mount(), destination="/proc/x"), "volumes[0].destination"),
        (replace(mount(), destination="/dev"), "volumes[0].destination"),
        (replace(mount(), reference="../vol"), "volumes[0].reference"),
        (replace(mount(), id=""), "volumes[0].id"),
        (replace(mount(), id="a,b"), "volumes[0].id"),
        (replace(mount(), source=DiskSource.EMPTY), "volumes[0].source"),
        (replace(mount(), format=DiskFormat.QCOW2), "volumes[0].format"),
        (replace(mount(), size_bytes=MIB), "volumes[0].size_bytes"),
        (replace(mount(), limit=RateLimit(1)), "volumes[0].limit.bytes_per_second"),
    ],
)
def test_a_mount_that_makes_no_sense_is_refused_with_its_field(rig: EngineRig, wrong: DiskSpec, field: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        rig.manager().create(spec(rig, volumes=(wrong,)))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("second", "field"),
    [
        (replace(mount("vol_2", "/other"), id="vol_1"), "volumes[1].id"),
        (replace(mount("vol_1", "/other"), id="b"), "volumes[1].reference"),
        (mount("vol_2", "/data"), "volumes[1].destination"),
    ],
)
def test_two_mounts_of_a_vm_share_nothing(rig: EngineRig, second: DiskSpec, field: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        rig.manager().create(spec(rig, volumes=(mount(), second)))
    assert caught.value.field == field


# One writer


async def test_two_writers_are_refused_and_the_first_keeps_it(rig: EngineRig) -> None:
    manager = await running(rig)
    assert await failed(manager, spec(rig, "two")) == "volume-held"
    assert await failed(manager, spec(rig, "three", (mount(read_only=True),))) == "volume-held"
    assert (await view(manager)).vm_id == "vm_one"
    await manager.stop("vm_one")
    await started(manager, spec(rig, "four"))


async def test_many_may_read_what_nobody_writes(rig: EngineRig) -> None:
    reading = (mount(read_only=True),)
    manager = await running(rig, reading)
    await started(manager, spec(rig, "two", reading))
    assert await failed(manager, spec(rig, "three")) == "volume-held"


async def test_of_several_volumes_a_vm_gets_all_or_none(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.volumes.create("vol_2", SIZE)
    assert await failed(manager, spec(rig, "two", (mount("vol_2", "/a"), mount("vol_1", "/b")))) == "volume-held"
    assert (await view(manager, "vol_2")).vm_id == ""


async def test_a_vmm_that_was_forgotten_keeps_its_volume(rig: EngineRig) -> None:
    manager = rig.manager()
    await manager.volumes.create("vol_1", SIZE)
    await manager.volumes.snapshot("vol_1", "snap_1")
    with ExitStack() as descriptors_of_a_vmm:
        await manager.volumes.attach((mount(),), descriptors_of_a_vmm)
        assert await failed(manager, spec(rig, "two")) == "volume-held"
        for order in (
            manager.volumes.delete("vol_1"),
            manager.volumes.restore("vol_1", "snap_1"),
            manager.volumes.snapshot("vol_1", "snap_2"),
        ):
            with pytest.raises(ConflictError) as caught:
                await order
            assert caught.value.code == "volume-held"
    await started(manager, spec(rig, "three"))


async def test_while_its_vm_is_starting_or_ending_a_snapshot_can_be_asked_for_again(rig: EngineRig) -> None:
    volumes = rig.manager().volumes
    await volumes.create("vol_1", SIZE)
    volumes.bind(lambda _vm_id: None)
    volumes.holdings.hold("vm_one", (mount(),))
    with ExitStack() as descriptors_of_its_vmm:
        await volumes.attach((mount(),), descriptors_of_its_vmm)
        with pytest.raises(UnavailableError) as caught:
            await volumes.snapshot("vol_1", "snap_1")
        assert (caught.value.code, caught.value.temporary) == ("volume-busy", True)
    await volumes.snapshot("vol_1", "snap_1")


async def test_after_a_restart_of_the_engine_a_running_vm_still_has_its_volume(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.close(keep_vms=True)
    manager = rig.manager()
    await manager.recover()
    assert (await view(manager)).vm_id == "vm_one"
    assert await failed(manager, spec(rig, "two")) == "volume-held"
    await manager.stop("vm_one")
    assert (await view(manager)).vm_id == ""


async def test_a_suspended_vm_keeps_its_volume_and_goes_on_with_it(rig: EngineRig) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    assert (await view(manager)).vm_id == "vm_one"
    assert await failed(manager, spec(rig, "two")) == "volume-held"
    with pytest.raises(ConflictError) as caught:
        await manager.volumes.resize("vol_1", 2 * SIZE)
    assert caught.value.code == "volume-held"
    await manager.volumes.snapshot("vol_1", "snap_1", freeze=True)
    manager = rig.manager()
    await manager.recover()
    assert (await view(manager)).vm_id == "vm_one"
    await manager.resume("vm_one")
    assert [disk.id for disk in rig.vmms.plan("vm_one").disks] == ["image", "layer", "vol_1"]
    await manager.delete("vm_one")
    assert (await view(manager)).vm_id == ""


async def test_a_vm_that_writes_to_a_volume_is_not_copied(rig: EngineRig) -> None:
    manager = rig.manager()
    await manager.volumes.create("vol_1", SIZE)
    await started(manager, replace(spec(rig), snapshot_safe=True))
    with pytest.raises(ConflictError) as caught:
        await manager.fork("vm_one", [ForkIdentity("vm_two", "two")])
    assert caught.value.code == "has-volumes"


async def test_copies_of_a_vm_that_reads_a_volume_read_it_too(rig: EngineRig) -> None:
    manager = rig.manager()
    await manager.volumes.create("vol_1", SIZE)
    await started(manager, replace(spec(rig, volumes=(mount(read_only=True),)), snapshot_safe=True))
    await manager.fork("vm_one", [ForkIdentity("vm_two", "two")])
    await reaches(manager, "vm_two", S.RUNNING)
    await manager.delete("vm_one")
    assert (await view(manager)).vm_id == "vm_two"


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


# Sealed volumes


async def test_the_vmm_of_a_sealed_volume_gets_its_key_by_a_descriptor_and_nobody_else(rig: EngineRig) -> None:
    manager = await running(rig, key=KEY)
    disk = rig.vmms.plan("vm_one").disks[2]
    assert disk.secret >= 0
    assert (await view(manager)).encrypted
    assert (await view(manager)).size_bytes == SIZE
    for path in rig.directory.rglob("*"):
        if path.is_file():
            assert KEY.hex().encode() not in path.read_bytes(), path
            assert KEY not in path.read_bytes(), path


async def test_after_a_restart_a_sealed_volume_is_locked_until_its_key_is_given(rig: EngineRig) -> None:
    manager = await running(rig, key=KEY)
    await manager.stop("vm_one")
    manager = rig.manager()
    await manager.recover()
    assert await failed(manager, spec(rig, "two")) == "volume-locked"
    with pytest.raises(ConflictError) as caught:
        await manager.volumes.unlock("vol_1", bytes(32))
    assert caught.value.code == "wrong-key"
    assert await failed(manager, spec(rig, "three")) == "volume-locked"
    await manager.volumes.unlock("vol_1", KEY)
    await started(manager, spec(rig, "four"))


async def test_a_sealed_volume_whose_header_was_overwritten_is_told_and_is_had_again_from_its_snapshot(
    rig: EngineRig,
) -> None:
    manager = rig.manager()
    await manager.volumes.create("vol_1", SIZE, key=KEY)
    await manager.volumes.snapshot("vol_1", "snap_1")
    with ExitStack() as descriptors:
        file = await rig.volumes.open("vol_1")
        descriptors.callback(os.close, file)
        os.pwrite(file, os.urandom(4096), 0)
    with pytest.raises(ConflictError) as caught:
        await manager.volumes.unlock("vol_1", KEY)
    assert caught.value.code == "damaged-header"
    assert "snapshot" in caught.value.resolution
    await manager.volumes.restore("vol_1", "snap_1")
    await manager.volumes.unlock("vol_1", KEY)


async def test_a_clone_of_a_sealed_volume_opens_with_the_same_key(rig: EngineRig) -> None:
    manager = rig.manager()
    await manager.volumes.create("vol_1", SIZE, key=KEY)
    await manager.volumes.snapshot("vol_1", "snap_1")
    await manager.volumes.clone("snap_1", "vol_2", 2 * SIZE)
    assert (await view(manager, "vol_2")).size_bytes == 2 * SIZE
    assert (await view(manager)).snapshots[0].size_bytes == SIZE
    await started(manager, spec(rig, volumes=(mount("vol_2"),)))
    await rig.manager().volumes.unlock("vol_2", KEY)


async def test_who_deletes_a_sealed_volume_has_forgotten_its_key(rig: EngineRig) -> None:
    manager = rig.manager()
    await manager.volumes.create("vol_1", SIZE, key=KEY)
    await manager.volumes.delete("vol_1")
    assert manager.volumes._stock.key_of("vol_1") is None
    with pytest.raises(NotFoundError):
        await manager.volumes.unlock("vol_1", KEY)


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
