"""VMs with volumes, on memory parts: who has what, what reaches VMM and guest, what holds them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace

import pytest

from plasmavmc.errors import (
    ConflictError,
    InvalidSpecError,
    UnavailableError,
)
from plasmavmc.guest.api import GuestVolume
from plasmavmc.types import MIB, DiskFormat, DiskSource, DiskSpec, ForkIdentity, RateLimit
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, guest, reaches, started
from tests.engine.volume_parts import SIZE, failed, mount, running, spec, view

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
