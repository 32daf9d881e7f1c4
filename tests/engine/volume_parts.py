"""What tests of VMs with volumes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from plasmavmc.manager import VmManager
from plasmavmc.types import MIB, DiskSource, DiskSpec, VmSpec
from plasmavmc.volumes import VolumeView
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, reaches, started

SIZE = 32 * MIB
KEY = bytes(range(32))


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
