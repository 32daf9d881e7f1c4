"""VMs of the platform by the engine's services, as their Python client sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from plasmavmc.errors import ConflictError, InvalidSpecError, NotFoundError, PlasmaError
from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.rpc.api import VmFilter
from plasmavmc.rpc.clients.vms import VmClient
from plasmavmc.states import VmState
from plasmavmc.types import CopyTarget, ExecSpec, ForkIdentity, LogStream, NetworkSpec, Scope, VmResources, VmSpec
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase, Sleep
from tests.api.api_world import ADMIN
from tests.api_grpc.grpc_world import GrpcWorld
from tests.waiting import until

ONE_OFF = VmSpec("", Scope("", ""), "", "registry.example/hello:v1", command=("true",), labels={"app": "shop"})


async def stored(world: GrpcWorld, instance_id: str) -> Instance | None:
    return await world.api.control.read(lambda tx: tx.instances.get(instance_id))


async def test_vms_of_all_nodes_are_listed_in_pages_with_what_the_platform_knows(world: GrpcWorld) -> None:
    one = await world.deployed()
    other = await world.api.commit(
        lambda unit: unit.tx.nodes.insert(replace(world.api.node, id=unit.new_id("node"), name="two"))
    )
    two = await world.api.running()
    await world.api.commit(lambda unit: unit.tx.instances.update(replace(two, node_id=other.id)))
    async with world.client() as client:
        found = [vm async for vm in client.vms.list_vms(page_size=1)]
        assert [vm.spec.id for vm in found] == sorted([one.id, two.id])
        assert {vm.spec.labels["node"] for vm in found} == {world.api.node.id, other.id}
        vm = await client.vms.get(one.id)
        assert (vm.status.state, vm.status.endpoints) == (VmState.RUNNING, ("tcp:10.64.0.5",))
        assert vm.spec.scope == Scope(world.api.project.organization_id, world.api.project.id)
        assert (vm.spec.labels["app"], vm.spec.labels["release"], vm.spec.labels["owner"]) == ("shop", "v1", "app")
        asked = VmFilter(states=frozenset({VmState.STOPPED}))
        assert [vm async for vm in client.vms.list_vms(asked)] == []
        asked = VmFilter(labels={"node": other.id})
        assert [vm.spec.id async for vm in client.vms.list_vms(asked)] == [two.id]


async def test_a_watch_tells_changes_and_goes_on_where_it_ended(world: GrpcWorld) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        events = client.vms.watch()
        snapshot = [await anext(events) for _ in range(3)]
        assert [event.vm.spec.id for event in snapshot if event.vm] == [instance.id]
        await world.observed(instance, Phase.UNHEALTHY, reason="no answer")
        changed = await anext(events)
        assert changed.vm is not None
        assert changed.vm.status.reason == "no answer"
        await events.aclose()
        await world.observed(instance, Phase.FAILED, reason="gone")
        resumed = client.vms.watch(resume_token=changed.resume_token)
        missed = await anext(resumed)
        assert missed.vm is not None
        assert missed.vm.status.state is VmState.FAILED
        await world.api.commit(lambda unit: unit.tx.instances.delete(instance.id))
        assert (await anext(resumed)).deleted_vm_id == instance.id
        await resumed.aclose()


async def test_a_one_off_vm_is_made_once_and_can_be_stopped_and_deleted(world: GrpcWorld) -> None:
    await world.deployed()
    async with world.client() as client:
        vm = await client.vms.create(ONE_OFF, start=True, request_id="one")
        assert (vm.status.state, vm.spec.labels["owner"], vm.spec.command) == (VmState.PENDING, "run", ("true",))
        run = await world.place(vm.spec.id)
        assert (await client.vms.start(run.id)).status.state is VmState.RUNNING
        stopping = asyncio.create_task(client.vms.stop(run.id))
        await until(lambda: _is_to_stop(world, run), "the run is to stop")
        await world.observed(run, Phase.STOPPED)
        assert (await stopping).status.state is VmState.STOPPED
        with pytest.raises(ConflictError, match="has run"):
            await client.vms.start(run.id)
        await client.vms.delete(run.id)
        assert await stored(world, run.id) is None
        with pytest.raises(NotFoundError):
            await client.vms.get(run.id)


async def _is_to_stop(world: GrpcWorld, run: Instance) -> bool:
    row = await stored(world, run.id)
    return row is not None and row.desired is Desired.STOP


async def test_a_repeated_order_makes_one_vm_also_after_a_restart_of_the_server(world: GrpcWorld) -> None:
    await world.deployed()
    async with world.client() as client:
        vm = await client.vms.create(ONE_OFF, start=True, request_id="one")
        assert await client.vms.create(ONE_OFF, start=True, request_id="one") == vm
        with pytest.raises(ConflictError) as refused:
            await client.vms.create(replace(ONE_OFF, command=("false",)), start=True, request_id="one")
        assert refused.value.code == "request-id-reused"
    async with world.restarted(), world.client() as client:
        assert (await client.vms.create(ONE_OFF, start=True, request_id="one")).spec.id == vm.spec.id
    async with world.restarted(), world.client() as client:
        with pytest.raises(ConflictError) as refused:
            await client.vms.create(replace(ONE_OFF, command=("false",)), start=True, request_id="one")
        assert refused.value.code == "vm-exists"
        assert (await client.vms.create(ONE_OFF, start=True, request_id="two")).spec.id != vm.spec.id
    runs = await world.api.control.read(lambda tx: tx.instances.select())
    assert [run.owner for run in runs].count(OwnerKind.RUN) == 2


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (replace(ONE_OFF, labels={}), "spec.labels.app"),
        (replace(ONE_OFF, labels={"app": "shop", "tier": "gold"}), "spec.labels.tier"),
        (replace(ONE_OFF, image="registry.example/other:v1"), "spec.image"),
        (replace(ONE_OFF, env={"A": "b"}), "spec.env"),
        (replace(ONE_OFF, networks=(NetworkSpec("nic", "net"),)), "spec.networks"),
        (replace(ONE_OFF, resources=VmResources(cpu_milli=2000)), "spec.resources"),
        (replace(ONE_OFF, name="mine"), "spec.name"),
        (replace(ONE_OFF, id="vm_mine"), "spec.id"),
        (replace(ONE_OFF, command=None), "spec.command"),
        (replace(ONE_OFF, labels={"app": "shop", "process": "none"}), "spec.process"),
    ],
)
async def test_what_a_one_off_vm_cannot_be_is_refused_by_field(world: GrpcWorld, wish: VmSpec, field: str) -> None:
    await world.deployed()
    async with world.client() as client:
        with pytest.raises(InvalidSpecError) as refused:
            await client.vms.create(wish, start=True)
    assert refused.value.field == field
    assert len(await world.api.control.read(lambda tx: tx.instances.select())) == 1


async def test_an_app_of_another_project_than_the_one_that_is_named_is_refused(world: GrpcWorld) -> None:
    instance = await world.deployed()
    scope = Scope(world.api.foreign.organization_id, world.api.foreign.id)
    async with world.client(ADMIN) as client:
        with pytest.raises(InvalidSpecError, match="another project"):
            await client.vms.create(replace(ONE_OFF, scope=scope, labels={"app": instance.app_id}), start=True)


Move = Callable[[VmClient, str], Awaitable[object]]
OWNED: dict[str, Move] = {
    "start": lambda vms, vm_id: vms.start(vm_id),
    "stop": lambda vms, vm_id: vms.stop(vm_id),
    "restart": lambda vms, vm_id: vms.restart(vm_id),
    "delete": lambda vms, vm_id: vms.delete(vm_id),
}


NOT_OFFERED: dict[str, Move] = {
    "fork": lambda vms, vm_id: vms.fork(vm_id, [ForkIdentity("", "")]),
    "restrict": lambda vms, vm_id: vms.restrict(vm_id, ()),
    "screen": lambda vms, vm_id: vms.screen(vm_id, "web", ()),
}


@pytest.mark.parametrize("move", OWNED)
async def test_an_apps_own_vm_is_its_planners(world: GrpcWorld, move: str) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        with pytest.raises(ConflictError) as refused:
            await OWNED[move](client.vms, instance.id)
    assert refused.value.code == "owned-by-app"
    assert "`swg " in refused.value.resolution
    assert await stored(world, instance.id) == instance


@pytest.mark.parametrize("move", NOT_OFFERED)
async def test_what_the_platform_does_not_offer_is_refused_with_a_way_out(world: GrpcWorld, move: str) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        with pytest.raises(ConflictError) as refused:
            await NOT_OFFERED[move](client.vms, instance.id)
    assert refused.value.code == "not-offered"
    assert refused.value.resolution


async def test_a_vm_is_suspended_and_resumed_an_apps_own_too(world: GrpcWorld) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        suspending = asyncio.create_task(client.vms.suspend(instance.id))
        await until(lambda: _is_told(world, instance, Sleep.DOZING), "it is to sleep")
        assert (await client.vms.get(instance.id)).status.state is VmState.SUSPENDING
        await world.observed(instance, Phase.ASLEEP)
        assert (await suspending).status.state is VmState.SUSPENDED
        with pytest.raises(ConflictError, match="it is asleep"):
            await client.vms.exec(instance.id, ExecSpec(command=("cat",)))
        resuming = asyncio.create_task(client.vms.resume(instance.id))
        await until(lambda: _is_told(world, instance, Sleep.AWAKE), "it is to wake")
        assert (await client.vms.get(instance.id)).status.state is VmState.RESUMING
        await world.observed(instance, Phase.HEALTHY)
        assert (await resuming).status.state is VmState.RUNNING


async def test_a_suspend_whose_caller_left_is_given_up(world: GrpcWorld) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        suspending = asyncio.create_task(client.vms.suspend(instance.id))
        await until(lambda: _is_told(world, instance, Sleep.DOZING), "it is to sleep")
        suspending.cancel()
        await until(lambda: _is_told(world, instance, Sleep.AWAKE), "it stays awake")


async def _is_told(world: GrpcWorld, instance: Instance, wanted: Sleep) -> bool:
    row = await stored(world, instance.id)
    return row is not None and row.sleep is wanted


async def test_a_command_runs_in_a_vm(world: GrpcWorld) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        session = await client.vms.exec(instance.id, ExecSpec(command=("cat",)))
        await session.send(b"hello")
        items = []
        async for item in session.output():
            items.append(item)
            if item == ExecOutput(LogStream.STDOUT, b"HELLO"):
                await session.send_eof()
        assert items[-1] == ExecExit(3)
        assert b"".join(item.data for item in items if isinstance(item, ExecOutput)) == b"HELLO"
        await world.observed(instance, Phase.FAILED)
        with pytest.raises(ConflictError, match="it is failed"):
            await client.vms.exec(instance.id, ExecSpec(command=("cat",)))


async def test_a_workload_is_joined_and_files_are_copied_by_the_same_streams(world: GrpcWorld) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        session = await client.vms.attach(instance.id)
        await session.send(b"there")
        output = session.output()
        assert await anext(output) == ExecOutput(LogStream.STDOUT, b"THERE")
        await session.aclose()

        async def archive() -> AsyncIterator[bytes]:
            yield b"a tar stream"

        await client.vms.copy_in(instance.id, CopyTarget("/data", "name"), archive())
        with pytest.raises(ConflictError, match="no such file"):
            assert [piece async for piece in client.vms.copy_out(instance.id, "/none")]
        await world.observed(instance, Phase.FAILED)
        with pytest.raises(ConflictError, match="does not run"):
            assert [piece async for piece in client.vms.copy_out(instance.id, "/none")]


async def test_logs_of_a_vm_are_told_and_followed_to_its_end(world: GrpcWorld) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        assert [line.text async for line in client.vms.logs(instance.id)] == ["first", "second"]
        followed = client.vms.logs(instance.id, follow=True)
        assert [(await anext(followed)).text for _ in range(2)] == ["first", "second"]
        await world.observed(instance, Phase.FAILED)
        assert [line async for line in followed] == []


async def test_watching_and_following_end_when_the_server_stops(world: GrpcWorld) -> None:
    await world.deployed()
    async with world.client() as client:
        events = client.vms.watch()
        assert (await anext(events)).snapshot_begin
        world.server.stop()
        with pytest.raises(PlasmaError) as ended:
            async for _ in events:
                pass
    assert ended.value.code == "server-stopping"
