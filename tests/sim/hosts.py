"""Nodes and edges: the real agent on a memory engine, and the real edge on a HAProxy in memory.

VMs and HAProxy are processes of their own: they live on while the agent or the edge is killed or stands still.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shellwego.agent.daemon import Agent
from shellwego.agent.probes import Target
from shellwego.agent.state import NodeState, _Stored
from shellwego.core.apps import Check
from shellwego.core.errors import UnavailableError
from shellwego.core.nodes import NodeFacts
from shellwego.core.sensitive import Sensitive
from shellwego.core.vms import VmPhase, VmView
from shellwego.core.volumeleases import END_SHARE, STOP_SHARE
from shellwego.core.volumes import VolumeView
from shellwego.drivers.engine.memory import MemoryEngine, _MemoryVm
from shellwego.drivers.uplink.memory import MemoryEdgeUplink, MemoryLink, MemoryNodeUplink
from shellwego.edge.daemon import Edge
from shellwego.edge.ingress import Ingress
from shellwego.edge.pool import Key, Operation, Pool, ServerState, instance_of
from shellwego.edge.settings import EdgeSettings
from shellwego.ports.engine import VmOrder
from tests.agent.kept import at_once
from tests.edge.fake_haproxy import FakeHaproxy, FakeMaster, FakeWorker, MemoryRoutes
from tests.sim.timeline import Gate, HostClock, give_way
from tests.sim.ways import BusWay, EdgeWire, MemoryWire, NodeWire, ReplicaWire, Wire, cancelled

if TYPE_CHECKING:
    from tests.sim.world import World

_NOWHERE = Path("/nonexistent")
_MEMORY = "/memory"
LEASE_S = 12.0
"""Of volumes that have a standby copy: shorter than it is, so that leases end, and copies become volumes, within a story."""
_LATE_S = 0.01
_SUBNET = 4096
"""Addresses of one node; the memory engine gives none out twice."""


class SimEngine(MemoryEngine):
    """The memory engine behind the gate of its agent; images that are bad behave so."""

    def __init__(self, host: NodeHost, number: int) -> None:
        super().__init__(host.world.clock, name=host.name)
        self._addresses = number * _SUBNET
        self._host = host
        self._world = host.world
        self._gate = host.gate
        self._facts: NodeFacts | None = None
        self._earlier: Mapping[str, float] = {}
        """Until when each volume could be had, before that was changed last."""

    async def facts(self) -> NodeFacts:
        if self._facts is None:
            memory = self._world.story.memory_bytes
            self._facts = replace(await super().facts(), memory_bytes=memory, cpu_milli=32_000)
        return self._facts

    async def run(self, order: VmOrder) -> None:
        await self._before("run")
        self._world.watch.vm_ordered(self._name, order)
        await super().run(order)
        self._vms[order.vm_id].files.setdefault(_MEMORY, order.vm_id.encode())
        for mount in order.workload.mounts:
            self._told(self._world.watch.contents.begun(self._host, order.vm_id, mount.volume_id))
        self.write(order.vm_id)
        if order.workload.image_digest in self._world.exits:
            self._vms[order.vm_id].order = replace(order, workload=replace(order.workload, command=("exit", "1")))

    async def stop(self, vm_id: str, grace_s: float) -> None:
        await self._before("stop")
        if vm_id in self._vms:
            self._world.watch.vm_stopped(self._name, self._vms[vm_id].view)
        await super().stop(vm_id, grace_s)

    async def delete(self, vm_id: str) -> None:
        await self._before("delete")
        await super().delete(vm_id)

    async def suspend(self, vm_id: str) -> None:
        await self._before("suspend")
        await super().suspend(vm_id)

    async def resume(self, vm_id: str) -> None:
        await self._before("resume")
        if vm_id in self._vms and self._vms[vm_id].view.phase is VmPhase.ASLEEP:
            self._world.watch.vm_woken(self._name, vm_id, self.memory(vm_id))
        await super().resume(vm_id)

    async def import_memory(self, order: VmOrder, stream: AsyncIterable[bytes]) -> None:
        await self._before("take a memory")
        await super().import_memory(order, stream)
        self._world.watch.note(f"{self._name} has the memory {self.memory(order.vm_id)} as {order.vm_id}")

    async def observe(self) -> tuple[VmView, ...]:
        await self._gate.passed()
        return await super().observe()

    async def volumes(self) -> tuple[VolumeView, ...]:
        await self._gate.passed()
        return await super().volumes()

    async def create_volume(self, volume_id: str, size_bytes: int, key: Sensitive | None = None) -> None:
        await self._before("make a volume")
        await super().create_volume(volume_id, size_bytes, key)
        self._world.watch.volume_made(self._name, volume_id)

    async def delete_volume(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        await self._before("delete a volume")
        await super().delete_volume(volume_id, with_snapshots=with_snapshots)

    async def resize_volume(self, volume_id: str, size_bytes: int) -> None:
        await self._before("resize a volume")
        await super().resize_volume(volume_id, size_bytes)

    async def snapshot_volume(self, volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        await self._before("take a snapshot")
        await super().snapshot_volume(volume_id, snapshot_id, freeze=freeze)

    async def restore_volume(self, volume_id: str, snapshot_id: str) -> None:
        await self._before("restore a volume")
        await super().restore_volume(volume_id, snapshot_id)
        self._world.watch.contents.restored(self._host, volume_id)

    async def receive_snapshot(
        self, volume_id: str, snapshot_id: str, stream: AsyncIterable[bytes], since: str = ""
    ) -> str:
        await self._before("receive a copy")
        return await super().receive_snapshot(volume_id, snapshot_id, stream, since)

    async def fence_volumes(self, until: Mapping[str, float]) -> None:
        await self._gate.passed()
        if until != self._until:
            self._earlier = self._until
        await super().fence_volumes(until)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._before("delete a snapshot")
        await super().delete_snapshot(snapshot_id)

    async def _before(self, order: str) -> None:
        await self._gate.passed()
        await self._world.points.reached(self._host, order)

    @property
    def views(self) -> list[VmView]:
        """What is there, asked from outside."""
        return [vm.view for vm in self._vms.values()]

    def memory(self, vm_id: str) -> str:
        """Which memory a VM has, by the VM that began it."""
        return self._vms[vm_id].files.get(_MEMORY, b"").decode()

    def digest(self, vm_id: str) -> str:
        return self._vms[vm_id].order.workload.image_digest if vm_id in self._vms else ""

    def mounted(self, volume_id: str) -> list[str]:
        """VMs that have a volume, asked from outside."""
        return [vm_id for kept, vm_id in self._holders() if kept == volume_id]

    def running_with(self, volume_id: str) -> list[str]:
        """Those of them that do not sleep: who does cannot write, and cannot wake once its time is over."""
        return [vm_id for vm_id in self.mounted(volume_id) if self._vms[vm_id].view.phase is not VmPhase.ASLEEP]

    def lasts_s(self, volume_id: str) -> float:
        """For how long yet the host lets a VM have a volume that is leased to it, whether one runs with it now or not."""
        return self._until.get(volume_id, 0.0) - self._clock.monotonic()

    def runs_out(self, vm_id: str) -> bool:
        """Whether the time is nearly over for which a VM may have its volumes, or was before it was made longer: who saw
        that has it stopped all the same."""
        volume_ids = [mount.volume_id for mount in self._vms[vm_id].order.workload.mounts]
        moments = [known.get(id_, math.inf) for known in (self._until, self._earlier) for id_ in volume_ids]
        left = min(moments, default=math.inf) - self._clock.monotonic()
        return left <= LEASE_S * (END_SHARE - STOP_SHARE) + _LATE_S

    def write(self, vm_id: str) -> None:
        """The workload writes to its volumes."""
        for mount in self._vms[vm_id].order.workload.mounts:
            self._told(self._world.watch.contents.write(self._host, vm_id, mount.volume_id))

    def _end(self, vm: _MemoryVm, **changes: object) -> None:
        if vm.view.phase is VmPhase.STOPPING:
            self.write(vm.view.vm_id)
        super()._end(vm, **changes)

    def _told(self, found: Iterable[tuple[str, str]]) -> None:
        for name, detail in found:
            self._world.watch.violated(name, detail)

    def end(self, vm_id: str, code: int) -> None:
        """The workload ends by itself."""
        reason = f"the workload ended with exit code {code}"
        self._end(self._vms[vm_id], exit_code=code, reason=reason, reason_code="exited")

    def power_off(self) -> None:
        """All VMs are gone with their host."""
        self._world.watch.power_lost(self._host.node_id, self._host.told)
        for vm in self._vms.values():
            if vm.life is not None:
                vm.life.cancel()
        self._vms.clear()


class _Disk(NodeState):
    """What an agent keeps, without a disk."""

    def __init__(self, kept: dict[str, _Stored]) -> None:
        self._kept = kept
        super().__init__(_NOWHERE, at_once)

    def _load(self) -> _Stored:
        return self._kept.get("stored", _Stored())

    def _write(self, stored: _Stored) -> None:
        self._kept["stored"] = stored


class _Prober:
    """Passes where the VM runs, unless its image is sick."""

    def __init__(self, node: NodeHost) -> None:
        self._node = node

    async def probe(self, target: Target, check: Check, connect_s: float) -> str:
        await self._node.gate.passed()
        view = next((view for view in self._node.engine.views if view.vm_id == target.vm_id), None)
        if view is None or view.phase is not VmPhase.RUNNING:
            return "connection refused"
        return "connection refused" if self._node.engine.digest(target.vm_id) in self._node.world.sick else ""


class NodeHost:
    """A host with its agent."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"node-{number}"
        self.gate = Gate()
        self.dice = world.dice(self.name)
        self.engine = SimEngine(self, number)
        self.bus = BusWay(world, self, self.gate, self.dice)
        self.wire = Wire(world, self.gate, self.dice)
        self.dead = False
        self._clock = HostClock(world.clock, self.gate, world.dice(f"ids of {self.name}"))
        self._disk: dict[str, _Stored] = {}
        self._agent: Agent | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def node_id(self) -> str:
        stored = self._disk.get("stored")
        return stored.node_id if stored is not None else ""

    @property
    def told(self) -> tuple[int, int]:
        """An epoch and a sequence that no report of its agents so far is above, and each later one is."""
        stored = self._disk.get("stored", _Stored())
        return stored.epoch, stored.sequence_limit

    def start(self) -> None:
        """Start the agent, which adopts what runs."""
        if self.dead or self._task is not None:
            return
        self.gate.open()
        self._agent = Agent(
            engine=self.engine,
            uplink=MemoryNodeUplink(NodeWire(self.wire), MemoryLink(self._clock)),
            listener=self.world.streams,
            bus=self.bus,
            clock=self._clock,
            name=self.name,
            state=_Disk(self._disk),
            prober=_Prober(self),
            memories=MemoryWire(self.wire),
            replicas=ReplicaWire(self.wire),
        )
        self._task = asyncio.ensure_future(self._agent.run())
        self._task.add_done_callback(self._ended)

    async def kill(self) -> None:
        """Kill the agent; VMs live on."""
        task, self._task = self._task, None
        if task is not None:
            await cancelled([task])

    async def die(self) -> None:
        """The host is gone."""
        await self.kill()
        self.engine.power_off()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.world.watch.violated("part-ended", f"the agent of {self.name} ended: {task.exception()!r}")


class _Worker(FakeWorker):
    """HAProxy's worker behind the gate of its edge."""

    def __init__(self, host: EdgeHost) -> None:
        super().__init__()
        self._host = host
        self._gate = host.gate
        self._dice = host.dice

    async def pool(self) -> Pool:
        await self._gate.passed()
        return await super().pool()

    async def connections(self, backends: set[str]) -> dict[Key, int]:
        await self._gate.passed()
        await give_way(self._dice.turns())
        return await super().connections(backends)

    async def execute(self, operations: Sequence[Operation]) -> list[str]:
        await self._gate.passed()
        await give_way(self._dice.turns())
        if operations:
            await self._host.world.points.reached(self._host, "change at")
        answers = await super().execute(operations)
        self.done.clear()
        return answers


class EdgeHost:
    """An edge with its HAProxy."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"edge-{number}"
        self.gate = Gate()
        self.dice = world.dice(self.name)
        self.bus = BusWay(world, self, self.gate, self.dice)
        self.wire = Wire(world, self.gate, self.dice)
        self.haproxy = FakeHaproxy()
        self.haproxy.worker = _Worker(self)
        self.haproxy.master = FakeMaster(self.haproxy.worker)
        self._clock = HostClock(world.clock, self.gate, world.dice(f"ids of {self.name}"))
        self._file = MemoryRoutes()
        self._task: asyncio.Task[None] | None = None

    @property
    def pool(self) -> Pool:
        """What HAProxy serves now."""
        return self.haproxy.worker.held if self.haproxy.alive else Pool(0)

    def ready(self) -> dict[Key, str]:
        """Servers that get requests, with their addresses."""
        return {key: each.address for key, each in self.pool.servers.items() if each.state is ServerState.READY}

    def start(self) -> None:
        if self._task is not None:
            return
        self.gate.open()
        settings = EdgeSettings(name=self.name, run_dir=_NOWHERE, state_dir=_NOWHERE, pool_size=16)
        uplink = MemoryEdgeUplink(EdgeWire(self.wire), MemoryLink(self._clock))
        edge = Edge(uplink, self.bus, self._clock, settings, listen=_refused, place=_placed)
        edge._haproxy = self.haproxy  # type: ignore[assignment]
        edge._ingress = Ingress(edge._settings, self.haproxy, self._file, self._clock)  # type: ignore[arg-type]
        self._task = asyncio.ensure_future(self._run(edge))
        self._task.add_done_callback(self._ended)

    async def kill(self) -> None:
        """Kill the edge; HAProxy serves on."""
        task, self._task = self._task, None
        if task is not None:
            await cancelled([task])

    async def lose_haproxy(self) -> None:
        """HAProxy dies, with all its connections."""
        self.haproxy.worker.held = Pool(0)
        self.haproxy.worker.silent = True
        await self.haproxy.kill()

    async def open_session(self, number: int, seconds: float) -> None:
        """A client's request to one of the servers that get any, for so long."""
        ready = sorted(self.ready())
        if not ready:
            return
        key, worker = ready[number % len(ready)], self.haproxy.worker
        self.world.request(instance_of(key[1]))
        generation = worker.number
        worker.held.servers[key] = replace(
            worker.held.servers[key], connections=worker.held.servers[key].connections + 1
        )

        async def close() -> None:
            server = self.pool.servers.get(key)
            if worker.number == generation and server is not None and server.connections:
                worker.held.servers[key] = replace(server, connections=server.connections - 1)

        self.world.later(seconds, close)

    async def _run(self, edge: Edge) -> None:
        await edge.open()
        await edge.run()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.world.watch.violated("part-ended", f"{self.name} ended: {task.exception()!r}")


async def _refused() -> int:
    raise UnavailableError("never", "the HAProxy in memory needs no socket")


async def _placed(pid: int, start_time: int) -> str:
    return "none"
