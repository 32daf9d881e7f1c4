"""NodeService over a real server: what the host has, and closing it for work."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from plasmavmc.backends import Readiness
from plasmavmc.errors import ConflictError, HostError, InvalidSpecError, NotFoundError
from plasmavmc.rpc.api import Amount, Node, Scheduling
from plasmavmc.rpc.client import EngineClient
from plasmavmc.server.node import EngineNode, NodeSite
from plasmavmc.states import VmState
from tests.engine.engine_rig import EngineRig
from tests.rpc.rpc_rig import RpcRig, running
from tests.waiting import until


async def start(rig: RpcRig, client: EngineClient, name: str = "one") -> None:
    await client.vms.create(rig.spec(name), start=True)

    async def runs() -> bool:
        return (await client.vms.get(f"vm_{name}")).status.state is VmState.RUNNING

    await until(runs, "it runs")


async def test_a_node_tells_what_it_has_and_what_it_promised(rig: RpcRig) -> None:
    async with rig.client() as root:
        node = await root.nodes.get()
        assert (node.id, node.scheduling, node.promised) == ("node_test", Scheduling.OPEN, Amount())
        assert node.capacity.memory_bytes > 0
        (backend,) = node.backends
        assert (backend.name, backend.readiness) == ("memory", Readiness.READY)
        assert backend.capabilities is not None
        await root.vms.create(rig.spec())
        promised = (await root.nodes.get("node_test")).promised
        assert promised == Amount(1000, 128 << 20, 4 << 30, 1)
        assert [each.id async for each in root.nodes.list_nodes()] == ["node_test"]
        with pytest.raises(NotFoundError, match="there is no node node_x"):
            await root.nodes.get("node_x")


async def test_the_memory_of_a_vm_that_sleeps_lies_on_the_disk(rig: RpcRig) -> None:
    """And it is to have it back."""
    async with rig.client() as root:
        await start(rig, root)
        await root.vms.suspend("vm_one")
        assert (await root.nodes.get()).promised == Amount(1000, 128 << 20, (4 << 30) + (128 << 20), 1)
        await root.vms.resume("vm_one")
        assert (await root.nodes.get()).promised == Amount(1000, 128 << 20, 4 << 30, 1)


async def test_a_cordoned_node_starts_nothing_new_and_leaves_alone_what_runs(rig: RpcRig) -> None:
    async with rig.client() as root:
        await start(rig, root)
        await root.vms.create(rig.spec("waiting"))
        assert (await root.nodes.cordon()).scheduling is Scheduling.CORDONED
        for forbidden in (
            lambda: root.vms.create(rig.spec("new")),
            lambda: root.vms.start("vm_waiting"),
            lambda: root.vms.restart("vm_one"),
        ):
            with pytest.raises(ConflictError, match="cordoned") as refused:
                await forbidden()
            assert refused.value.code == "node-cordoned"
        assert (await root.vms.start("vm_one")).status.state is VmState.RUNNING
        await root.vms.create(rig.spec())
        assert (await root.nodes.uncordon()).scheduling is Scheduling.OPEN
        await root.vms.start("vm_waiting")


async def test_a_cordon_outlives_the_server(rig: RpcRig) -> None:
    async with rig.client() as root:
        await root.nodes.cordon()
    async with running(engine=rig.engine) as after, after.client() as root:
        assert (await root.nodes.get()).scheduling is Scheduling.CORDONED


async def test_a_drained_node_runs_nothing(rig: RpcRig) -> None:
    async with rig.client() as root:
        for name in ("one", "two"):
            await start(rig, root, name)
        await root.vms.create(rig.spec("waiting"))
        drained = await root.nodes.drain(deadline_s=20)
        assert drained.scheduling is Scheduling.DRAINED
        states = {vm.spec.id: vm.status.state async for vm in root.vms.list_vms()}
        assert states == {"vm_one": VmState.STOPPED, "vm_two": VmState.STOPPED, "vm_waiting": VmState.PENDING}
        assert (await root.nodes.uncordon()).scheduling is Scheduling.OPEN


async def test_a_drain_answers_at_its_deadline(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(vm_id: str, grace_s: float) -> None:
        await asyncio.Event().wait()

    async with rig.client() as root:
        await start(rig, root)
        with monkeypatch.context() as patched:
            patched.setattr(rig.manager, "stop", never)
            assert (await root.nodes.drain(deadline_s=1)).scheduling is Scheduling.DRAINING
        with pytest.raises(InvalidSpecError, match="deadline_seconds"):
            await root.nodes.drain(deadline_s=10**6)


async def test_a_watcher_sees_each_change(rig: RpcRig) -> None:
    seen: list[Node] = []

    async with rig.client() as root, asyncio.timeout(10):
        async for node in root.nodes.watch():
            seen.append(node)
            match len(seen):
                case 1:
                    await root.nodes.cordon()
                case 2:
                    await root.nodes.uncordon()
                case 3:
                    await root.vms.create(rig.spec())
                case _:
                    break
    assert [node.scheduling for node in seen[:3]] == [Scheduling.OPEN, Scheduling.CORDONED, Scheduling.OPEN]
    assert seen[3].promised.vms == 1


async def test_a_damaged_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    engine = EngineRig(tmp_path)
    manager = engine.manager()
    (tmp_path / "node.json").write_text('{"scheduling":"sideways"}')
    site = NodeSite(id="n", name="n", version="1", state_file=tmp_path / "node.json", disk_dir=tmp_path, max_vms=1)
    with pytest.raises(HostError, match=r"node\.json") as refused:
        EngineNode(site, manager, engine.parts.registry)
    assert "Remove it" in refused.value.resolution
