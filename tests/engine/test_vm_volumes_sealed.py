"""Encrypted volumes, on memory parts: who gets the key, and what is left without it."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from plasmavmc.errors import (
    ConflictError,
    NotFoundError,
)
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import started
from tests.engine.volume_parts import KEY, SIZE, failed, mount, running, spec, view


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
