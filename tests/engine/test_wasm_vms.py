"""VMs of WebAssembly modules in a whole engine: which backend they get, what they hold, what they are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import InvalidSpecError
from plasmavmc.hypervisor.backend import VmPlan
from plasmavmc.hypervisor.memory import CAPABILITIES, MemoryBackend
from plasmavmc.manager import VmManager
from plasmavmc.states import VmState
from plasmavmc.types import BackendCapabilities, GuestKind, Vm, VmHandle, VmSpec
from tests.engine.engine_rig import EngineRig
from tests.engine.test_wasm_images import artifact


class RunsModules(MemoryBackend):
    """A memory backend of the kind that runs modules."""

    @property
    def capabilities(self) -> BackendCapabilities:
        return replace(CAPABILITIES, name="memory-wasm", guest_kinds=(GuestKind.WASM,), max_disks=2)

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        return replace(await super().create_vm(spec, plan), backend="memory-wasm")


@pytest.fixture
def rig(tmp_path: Path) -> EngineRig:
    return EngineRig(tmp_path, sample=artifact())


async def engine(rig: EngineRig) -> VmManager:
    manager = rig.manager()
    rig.parts.registry.register(RunsModules(rig.vmms))
    await manager.recover()
    return manager


async def see(manager: VmManager, vm_id: str, holds: Callable[[Vm], bool]) -> Vm:
    async with asyncio.timeout(20):
        revision = -1
        while not holds(manager.get(vm_id)):
            revision = await manager.changed(revision)
    return manager.get(vm_id)


def ended_or_runs(vm: Vm) -> bool:
    return vm.status.state in (VmState.RUNNING, VmState.FAILED)


async def test_a_module_runs_on_the_backend_for_modules_and_holds_neither_disk_nor_address(rig: EngineRig) -> None:
    manager = await engine(rig)
    spec = rig.spec("a", "serve")
    manager.create(spec)
    manager.start(spec.id)
    vm = await see(manager, spec.id, ended_or_runs)
    assert (vm.status.state, vm.status.backend, vm.status.endpoints) == (VmState.RUNNING, "memory-wasm", ())
    assert await rig.storage.disks() == ()
    assert rig.network.rules is not None
    assert rig.network.rules.members == ()
    await manager.delete(spec.id)
    assert rig.vmms.known() == frozenset()


async def test_a_module_on_a_backend_for_linux_fails_for_good_and_later_at_once(rig: EngineRig) -> None:
    manager = await engine(rig)
    spec = replace(rig.spec("a", "serve"), backend="memory")
    manager.create(spec)
    manager.start(spec.id)
    vm = await see(manager, spec.id, ended_or_runs)
    assert (vm.status.state, vm.status.permanent) == (VmState.FAILED, True)
    assert vm.status.reason == "backend: the image is a WebAssembly module, which memory does not run"
    with pytest.raises(InvalidSpecError) as refused:
        manager.create(replace(rig.spec("b", "serve"), backend="memory"))
    assert refused.value.field == "backend"


async def test_a_module_that_shall_serve_http_is_refused_by_the_variable_that_says_so(rig: EngineRig) -> None:
    manager = await engine(rig)
    spec = replace(rig.spec("a", "serve"), env={"PORT": "8080"})
    manager.create(spec)
    manager.start(spec.id)
    vm = await see(manager, spec.id, ended_or_runs)
    assert (vm.status.state, vm.status.permanent) == (VmState.FAILED, True)
    assert vm.status.reason.startswith("env.PORT: a WebAssembly module runs as a command and cannot serve HTTP")
