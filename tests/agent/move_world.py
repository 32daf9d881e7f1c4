"""Two or three hosts with real agents over engines that outlive them, one control plane, and an app with one instance that
sleeps: what a node that is emptied makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shellwego.control import scheduling, sleep
from shellwego.control.memories import NodeMemories
from shellwego.control.replicastreams import NodeReplicas
from shellwego.control.scheduling import DrainWish
from shellwego.control.unit import Unit
from shellwego.core.instances import Instance, Phase
from shellwego.core.nodes import Node, Scheduling
from shellwego.core.vms import VmPhase, VmView
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.ports.store import Store, eq
from shellwego.ports.uplink import Replicas
from tests.agent.agent_host import AgentHost
from tests.control.rollout_world import FakeEdge, World

FILE, SECRET = "/counter", b"41"
NEVER_ENDS = 120.0


class Host(AgentHost):
    """An engine, and the agent over it."""

    def __init__(self, hosts: Hosts, name: str) -> None:
        super().__init__(hosts.world, name, hosts.directory / name)
        self._hosts = hosts
        self.fetches = True

    def further(self) -> dict[str, Any]:
        memories = self._hosts.memories if self.fetches else None
        return {"listener": self._hosts.streams, "memories": memories, "replicas": self._hosts.replicas}

    @property
    def id(self) -> str:
        return self.agent.node_id if self.agent is not None else ""

    @property
    def views(self) -> list[VmView]:
        return [vm.view for vm in self.engine._vms.values()]

    def has_memory(self) -> bool:
        """Of a VM that has not ended."""
        alive = (vm for vm in self.engine._vms.values() if vm.view.phase is not VmPhase.ENDED)
        return any(vm.files.get(FILE) == SECRET for vm in alive)

    def runs_with_memory(self) -> bool:
        running = (vm for vm in self.engine._vms.values() if vm.view.phase is VmPhase.RUNNING)
        return any(vm.files.get(FILE) == SECRET for vm in running)


class Hosts:
    """`old` is where the instance sleeps; `new` has room."""

    def __init__(self, directory: Path, open_store: Callable[[VirtualClock], Store] = MemoryStore) -> None:
        self.directory = directory
        self.world = World(open_store)
        self.clock = self.world.clock
        self.streams = MemoryStreams()
        self.memories = NodeMemories(self.world.control, self.streams)
        self.replicas: Replicas = NodeReplicas(self.world.control, self.streams)
        self.old = Host(self, "old")
        self.others: list[Host] = []
        self.edge: FakeEdge
        self.id = ""

    async def open(self, *names: str) -> None:
        """The platform, and an instance that sleeps on `old` with something in its memory; the other hosts join then."""
        await self.world.begin()
        self.old.start()
        await self.clock.advance(1)
        self.edge = await self.world.edge()
        await self.world.finished(await self.world.deploy("hello:v1"))
        await self.clock.until(lambda: len(self.edge.endpoints()) == 1, 60)
        (self.id,) = self.edge.endpoints()
        (vm,) = self.old.engine._vms.values()
        vm.files[FILE] = SECRET
        await self.ask(sleep.suspend, self.id)
        await self.clock.until(lambda: self.instance().phase is Phase.ASLEEP, 60)
        for name in names:
            await self.join(name)

    async def join(self, name: str) -> Host:
        host = Host(self, name)
        self.others.append(host)
        host.start()
        await self.clock.until(lambda: bool(host.id), 60)
        return host

    @property
    def new(self) -> Host:
        return self.others[0]

    @property
    def all(self) -> list[Host]:
        return [self.old, *self.others]

    async def close(self) -> None:
        for host in self.all:
            await host.kill()
        await self.world.end()
        for host in self.all:
            await host.engine.close(keep_vms=False)

    def instance(self, id_: str = "") -> Instance:
        found = self.world.peek(lambda tx: tx.instances.get(id_ or self.id))
        assert found is not None
        return found

    def successor(self) -> Instance | None:
        """What lives in the place of the first instance."""
        return next((i for i in self.world.live() if i.id != self.id), None)

    def row(self, host: Host) -> Node:
        found = self.world.peek(lambda tx: tx.nodes.get(host.id))
        assert found is not None
        return found

    async def ask(self, order: Callable[[Unit, Instance], Instance], id_: str) -> None:
        await self.world.control.commit(lambda unit: order(unit, self.instance(id_)))

    async def drain(self, **wish: object) -> None:
        await self.world.control.commit(lambda unit: scheduling.drain(unit, self.row(self.old), DrainWish(**wish)))  # type: ignore[arg-type]

    def drained(self) -> bool:
        return self.row(self.old).scheduling is Scheduling.DRAINED

    def told(self, type_: str) -> list[dict[str, str]]:
        return [dict(event.data) for event in self.world.peek(lambda tx: tx.events.select(eq("type", type_)))]

    async def settles(self) -> None:
        """The old node is empty, and one instance is left, where it is as it should be."""

        def done() -> bool:
            live = self.world.live()
            return self.drained() and len(live) == 1 and live[0].phase in (Phase.ASLEEP, Phase.HEALTHY)

        await self.clock.until(done, NEVER_ENDS)
        await self.clock.advance(5)
        assert done()

    async def watched(self, seconds: float) -> None:
        """Time passes, and at no moment does the memory run, or is it nowhere."""
        for _ in range(int(seconds / 0.01)):
            await self.clock.advance(0.01)
            assert any(host.has_memory() for host in self.all), "the memory is nowhere"
            assert not any(host.runs_with_memory() for host in self.all), "it woke by itself"
