"""Steps that tests of suspending, resuming and copying share, on an engine of memory parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from plasmavmc.guest.memory import MemoryGuest
from plasmavmc.hypervisor.memory import Faults
from plasmavmc.manager import VmManager
from plasmavmc.states import VmState
from plasmavmc.types import ExecSpec, VmSpec, vm_key
from tests.engine.engine_rig import EngineRig

DEADLINE_S = 5.0
S = VmState


async def running(rig: EngineRig, name: str = "one", *, safe: bool = False) -> VmManager:
    manager = rig.manager()
    await started(manager, replace(rig.spec(name, "serve"), snapshot_safe=safe))
    return manager


async def started(manager: VmManager, spec: VmSpec) -> None:
    manager.create(spec)
    manager.start(spec.id)
    await reaches(manager, spec.id, S.RUNNING)


async def reaches(manager: VmManager, vm_id: str, state: VmState) -> None:
    async with asyncio.timeout(DEADLINE_S):
        revision = manager.revision
        while manager.get(vm_id).status.state is not state:
            revision = await manager.changed(revision)


async def eventually(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0)


async def only_disks(rig: EngineRig, *vm_ids: str) -> None:
    """In a moment there are the disks of these VMs and no others."""
    wanted = {vm_key(vm_id) for vm_id in vm_ids}
    await eventually(lambda: set(rig.storage._disks) == wanted)


def guest(rig: EngineRig, vm_id: str = "vm_one") -> MemoryGuest:
    found = rig.vmms.guest(vm_id)
    assert isinstance(found, MemoryGuest)
    return found


def leftovers(rig: EngineRig) -> set[str]:
    return {path.name for path in (rig.directory / "snapshots").iterdir()}


async def only_snapshots(rig: EngineRig, *vm_ids: str) -> None:
    """In a moment there are snapshots of these VMs, and nothing beside."""
    wanted = {vm_key(vm_id) for vm_id in vm_ids}
    async with asyncio.timeout(DEADLINE_S):
        while leftovers(rig) != wanted:  # noqa: ASYNC110 - a thread removes them
            await asyncio.sleep(0.001)


def members(rig: EngineRig) -> int:
    assert rig.network.rules is not None
    return len(rig.network.rules.members)


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def snapshot(rig: EngineRig, vm_id: str = "vm_one") -> Path:
    return rig.directory / "snapshots" / vm_key(vm_id)


async def runs_on(rig: EngineRig, manager: VmManager) -> None:
    """It runs as if nothing had been, and can still be suspended."""
    vm = manager.get("vm_one")
    assert vm.status.state is S.RUNNING
    assert not guest(rig).held
    assert not rig.vmms.standing_still()
    await only_snapshots(rig)
    rig.vmms.faults = Faults()
    session = await manager.exec("vm_one", ExecSpec(("echo", "alive")))
    await session.aclose()
    await manager.suspend("vm_one")
    await manager.resume("vm_one")
    await manager.stop("vm_one")


async def slowly(rig: EngineRig) -> None:
    """Saving takes for ever, until it is given up."""
    rig.vmms.faults.save_s = 3600
