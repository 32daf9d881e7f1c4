"""A whole agent and a whole edge's talk over the node port, against the control plane's own use cases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.agent.daemon import Agent
from shellwego.agent.state import NodeState
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.streams import open_stream, records
from shellwego.control.unit import Control
from shellwego.core.assignments import Registration
from shellwego.core.errors import ForbiddenError
from shellwego.core.instances import Instance, Phase
from shellwego.core.nodes import Node, NodeFacts
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.streams.dial import WebSocketDialler
from shellwego.drivers.streams.dialled import DialledListener
from shellwego.drivers.uplink.tls import TlsNodeUplink
from shellwego.ports.store import Transaction
from shellwego.ports.streams import StreamKind, StreamRequest
from shellwego.wire import subjects
from shellwego.wire.streams import RecordKind
from tests.agent.agent_world import FakeProber
from tests.agent.test_agent_with_control import _INSTANCE, _insert_app
from tests.contract.node_port import CuttableWire, Port, Rig
from tests.contract.uplink_contract import Recorder


class _OverControl(Recorder):
    """The control plane behind a port: its nodes are the real use cases."""

    def __init__(self, nodes: Nodes) -> None:
        super().__init__()
        self.register = nodes.register  # type: ignore[method-assign]
        self.assignments = nodes.assignments  # type: ignore[method-assign]
        self.report = nodes.report  # type: ignore[method-assign]
        self.secrets = nodes.secrets  # type: ignore[method-assign]
        self.backup_access = nodes.backup_access  # type: ignore[method-assign]


class Cluster:
    """Two servers on one store, and a node with its agent, which reaches the first through a wire."""

    def __init__(self, rig: Rig, state_dir: Path) -> None:
        clock = SystemClock()
        self.store = MemoryStore(clock)
        self.bus = MemoryBus()
        control = Control(self.store, self.bus, clock)
        nodes = Nodes(control, Sealer(control, MemoryKms()))
        self.ports: list[Port] = [rig.port(_OverControl(nodes), bus=self.bus) for _ in range(2)]
        self.wire: CuttableWire = rig.wire(self.ports[0])
        self.engine = MemoryEngine(clock, boot_s=0.01)
        self._rig, self._clock, self._state_dir = rig, clock, state_dir

    async def open(self) -> None:
        """The node joined; its agent starts."""
        await self.store.transact(_insert_app)
        node_id = await self.store.transact(self._join)
        credentials = self._rig.identities.node(node_id, "one")
        urls = [self.wire.url, self.ports[1].url]
        hints = MemoryBus()
        agent = Agent(
            engine=self.engine,
            uplink=TlsNodeUplink(self._rig.channel(credentials, *urls, rival_s=0.2)),
            listener=DialledListener(lambda: urls, WebSocketDialler(lambda: credentials), hints),
            bus=hints,
            clock=self._clock,
            name="says something else",
            state=NodeState(self._state_dir),
            prober=FakeProber(self._clock),  # type: ignore[arg-type]
        )
        self._rig.links.append(asyncio.ensure_future(agent.run()))
        self.node_id = node_id
        await self.ports[1].linked(node_id)

    def _join(self, tx: Transaction) -> str:
        facts = NodeFacts(hostname="one", version="1", cpu_milli=1, memory_bytes=1, disk_bytes=1)
        node = Node(id=self._clock.new_id("node"), name="one", facts=facts, epoch=1, last_heard_at=0.0, created_at=0.0)
        return tx.nodes.insert(node).id

    async def place(self, number: int) -> None:
        """Put an instance on the node, as a planner does, and hint."""
        placed = replace(_INSTANCE, id=f"ins_{number}", slot=number, node_id=self.node_id, phase=Phase.ASSIGNED)
        await self.store.transact(lambda tx: tx.instances.insert(placed))
        await self.bus.publish(subjects.assignments(self.node_id))

    async def instance(self, number: int, until: Callable[[Instance], bool]) -> Instance:
        """An instance once it is so."""
        async with asyncio.timeout(30):
            while True:
                found = await self.store.read(lambda tx: tx.instances.get(f"ins_{number}"))
                if found is not None and until(found):
                    return found
                await asyncio.sleep(0.01)


@pytest.fixture
async def cluster(rig: Rig, tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(rig, tmp_path)
    await cluster.open()
    yield cluster
    for link in rig.links:
        link.cancel()
    await asyncio.gather(*rig.links, return_exceptions=True)
    await cluster.engine.close(keep_vms=False)


def is_healthy(instance: Instance) -> bool:
    return instance.phase is Phase.HEALTHY


async def test_a_node_behind_its_own_calls_runs_what_is_placed_on_it(cluster: Cluster) -> None:
    await cluster.place(1)
    healthy = await cluster.instance(1, is_healthy)
    nodes = await cluster.store.read(lambda tx: tx.nodes.select())
    assert [node.name for node in nodes] == ["one"], "it is the node that joined, whatever it calls itself"
    for port in cluster.ports:
        request = StreamRequest(kind=StreamKind.EXEC, instance_id="", command=("echo", "hello"))
        await port.linked(cluster.node_id)
        stream = await open_stream(port.streams, healthy, request)
        async with aclosing(records(stream)) as incoming:
            kinds = [record.kind async for record in incoming]
        assert kinds[-1] is RecordKind.EXIT
        await stream.aclose()


async def test_a_server_that_is_cut_off_pauses_or_dies_is_not_missed(cluster: Cluster) -> None:
    for number, fault in enumerate((cluster.wire.cut, cluster.wire.freeze), start=1):
        fault()
        await cluster.place(number)
        await cluster.instance(number, is_healthy)
        cluster.wire.heal()
        await cluster.ports[0].linked(cluster.node_id)
    await cluster.ports[0].stop()
    await cluster.place(3)
    await cluster.instance(3, is_healthy)
    cluster.ports[0].start()
    await cluster.ports[0].linked(cluster.node_id)


async def test_what_runs_goes_on_while_no_server_is_there(cluster: Cluster) -> None:
    await cluster.place(1)
    before = (await cluster.instance(1, is_healthy)).observed
    for port in cluster.ports:
        await port.stop()
    cluster.engine.die(before.vm_id)
    async with asyncio.timeout(30):
        while not [vm for vm in await cluster.engine.observe() if vm.attempt == 2]:  # noqa: ASYNC110 - as an agent looks
            await asyncio.sleep(0.01)
    cluster.ports[1].start()
    after = await cluster.instance(1, lambda found: is_healthy(found) and found.observed.attempt == 2)
    assert after.observed.sequence > before.sequence
    cluster.ports[0].start()


async def test_a_node_that_lies_about_its_name_gets_no_other_ones(rig: Rig, cluster: Cluster) -> None:
    """Its key says who it is; the node table has no second row."""
    stranger = rig.identities.node("node_of_nobody", "one")
    uplink = TlsNodeUplink(rig.channel(stranger, cluster.ports[1].url))
    facts = await cluster.engine.facts()
    with pytest.raises(ForbiddenError):
        await uplink.register(Registration(name="two", facts=facts))
    assert len(await cluster.store.read(lambda tx: tx.nodes.select())) == 1
