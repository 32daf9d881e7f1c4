"""VMs of WebAssembly modules in a whole engine: which backend they get, what they hold, what they are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.backends import BackendCapabilities, GuestKind
from plasmavmc.booting import service_port
from plasmavmc.errors import InvalidSpecError
from plasmavmc.hypervisor.backend import VmPlan
from plasmavmc.hypervisor.memory import CAPABILITIES, MemoryBackend
from plasmavmc.images.source import ImageConfig
from plasmavmc.manager import VmManager
from plasmavmc.states import VmState
from plasmavmc.types import PublishedPort, Vm, VmHandle, VmSpec
from tests.engine.engine_rig import EngineRig
from tests.engine.test_wasm_images import artifact


class RunsModules(MemoryBackend):
    """A memory backend of the kind that runs modules."""

    @property
    def capabilities(self) -> BackendCapabilities:
        return replace(CAPABILITIES, name="memory-wasm", guest_kinds=(GuestKind.WASM,), max_disks=2)

    async def create_vm(self, spec: VmSpec, plan: VmPlan) -> VmHandle:
        handle = await super().create_vm(spec, plan)
        endpoint = {"endpoint": f"unix:{plan.runtime_dir}/http.sock"} if plan.service_port else {}
        return replace(handle, backend="memory-wasm", backend_state={**handle.backend_state, **endpoint})


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


async def test_a_module_with_a_port_takes_requests_at_a_socket_and_one_without_at_none(rig: EngineRig) -> None:
    manager = await engine(rig)
    spec = replace(rig.spec("a", "serve"), env={"PORT": "8080"})
    manager.create(spec)
    manager.start(spec.id)
    vm = await see(manager, spec.id, ended_or_runs)
    assert vm.status.state is VmState.RUNNING
    [endpoint] = vm.status.endpoints
    assert endpoint.startswith("unix:/")
    stopped = await manager.stop(spec.id)
    assert stopped.status.endpoints == ()


@pytest.mark.parametrize(
    ("env", "published", "field"),
    [
        ({"PORT": "http"}, (), "env.PORT"),
        ({"PORT": "0"}, (), "env.PORT"),
        ({"PORT": "8080"}, (PublishedPort(9000, 80),), "published"),
        ({}, (PublishedPort(9000, 80), PublishedPort(9001, 81)), "published"),
    ],
)
def test_a_module_answers_on_one_port(
    rig: EngineRig, env: dict[str, str], published: tuple[PublishedPort, ...], field: str
) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        service_port(replace(rig.spec("a"), env=env, published=published), ImageConfig())
    assert refused.value.field == field


def test_a_published_port_makes_a_module_one_that_serves(rig: EngineRig) -> None:
    published = (PublishedPort(9000, 80), PublishedPort(9001, 80))
    assert service_port(replace(rig.spec("a"), published=published), ImageConfig()) == 80
    assert service_port(rig.spec("a"), ImageConfig(env={"PORT": "81"})) == 81
    assert service_port(rig.spec("a"), ImageConfig()) is None
