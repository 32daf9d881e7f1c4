"""The agent against the control plane's own end of the uplink: both must mean the same by what they say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.agent.daemon import Agent
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control
from shellwego.core.apps import App, AppConfig, Release, Service
from shellwego.core.instances import Desired, Instance, Phase
from shellwego.core.tenancy import Project
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink.memory import MemoryLink, MemoryNodeUplink
from shellwego.ports.store import Transaction
from shellwego.wire import subjects
from tests.agent.agent_world import FakeProber
from tests.agent.kept import kept_in

CONFIG = AppConfig(image="hello:v1", services=(Service(port=8080),))


class Platform:
    """A control plane without planners, and a node."""

    def __init__(self, state_dir: Path) -> None:
        self.clock = VirtualClock()
        self.bus = MemoryBus()
        self.store = MemoryStore(self.clock)
        self.control = Control(self.store, self.bus, self.clock)
        self.engine = MemoryEngine(self.clock)
        self._state_dir = state_dir
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await self.store.transact(_insert_app)
        self.start_agent(self._state_dir)
        await self.clock.advance(1)

    def start_agent(self, state_dir: Path) -> None:
        agent = Agent(
            engine=self.engine,
            uplink=MemoryNodeUplink(Nodes(self.control, Sealer(self.control, MemoryKms())), MemoryLink(self.clock)),
            listener=MemoryStreams(),
            bus=self.bus,
            clock=self.clock,
            name="one",
            state=kept_in(state_dir),
            prober=FakeProber(self.clock),
        )
        self._tasks.append(asyncio.create_task(agent.run()))

    async def kill_agent(self) -> None:
        task = self._tasks.pop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        await self.kill_agent()
        await self.engine.close(keep_vms=False)

    async def place(self) -> None:
        """Put an instance on the node, as a planner does."""

        def work(tx: Transaction) -> str:
            node = tx.nodes.select()[0]
            tx.instances.insert(replace(_INSTANCE, node_id=node.id, phase=Phase.ASSIGNED))
            return node.id

        await self._hint(await self.store.transact(work))

    async def want(self, desired: Desired) -> None:
        def work(tx: Transaction) -> str:
            instance = tx.instances.get("ins_1")
            assert instance
            return tx.instances.update(replace(instance, desired=desired)).node_id

        await self._hint(await self.store.transact(work))

    async def instance(self) -> Instance:
        found = await self.store.read(lambda tx: tx.instances.get("ins_1"))
        assert found
        return found

    async def reaches(self, phase: Phase, timeout: float) -> Instance:
        """The instance, once it is in this phase."""
        for _ in range(int(timeout / 0.05)):
            if (await self.instance()).phase is phase:
                break
            await self.clock.advance(0.05)
        instance = await self.instance()
        assert instance.phase is phase
        return instance

    async def events(self) -> list[str]:
        return [event.type for event in await self.store.read(lambda tx: tx.events.select())]

    async def _hint(self, node_id: str) -> None:
        await self.bus.publish(subjects.assignments(node_id))


_INSTANCE = Instance(
    id="ins_1",
    app_id="app_1",
    process="web",
    slot=0,
    release_id="rel_1",
    content_hash="x",
    generation=0,
    memory_bytes=1 << 28,
    cpu_milli=500,
    disk_bytes=1 << 32,
    created_at=1.0,
    phase_since=1.0,
)


def _insert_app(tx: Transaction) -> None:
    tx.projects.insert(
        Project(id="prj_1", organization_id="org_1", name="p", network_id="net_1", first=True, created_at=1.0)
    )
    tx.apps.insert(
        App(
            id="app_1",
            project_id="prj_1",
            name="hello",
            hostname="hello.localhost",
            config=CONFIG,
            counts={},
            created_at=1.0,
            updated_at=1.0,
        )
    )
    tx.releases.insert(
        Release(
            id="rel_1",
            app_id="app_1",
            number=1,
            config=CONFIG,
            image_digest="sha256:" + "0" * 64,
            content_hash="x",
            created_at=1.0,
            created_by="usr_1",
        )
    )


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    platform = Platform(tmp_path / "agent")
    await platform.open()
    yield platform
    await platform.close()


async def test_a_placed_instance_becomes_healthy_in_the_store(platform: Platform) -> None:
    await platform.place()
    await platform.reaches(Phase.HEALTHY, timeout=1)
    assert (await platform.instance()).observed.address.startswith("10.64.")


async def test_an_instance_that_is_to_stop_is_stopped_in_the_store_and_gone_from_the_host(platform: Platform) -> None:
    await platform.place()
    await platform.reaches(Phase.HEALTHY, timeout=1)
    await platform.want(Desired.STOP)
    await platform.reaches(Phase.STOPPED, timeout=1)
    await platform.clock.advance(5)
    assert await platform.engine.observe() == ()


async def test_a_crash_is_seen_and_mended_without_another_instance(platform: Platform) -> None:
    await platform.place()
    await platform.reaches(Phase.HEALTHY, timeout=1)
    platform.engine.die((await platform.instance()).observed.vm_id)
    await platform.reaches(Phase.STARTING, timeout=1)
    await platform.reaches(Phase.HEALTHY, timeout=3)
    assert (await platform.instance()).observed.attempt == 2


@pytest.mark.parametrize("remembers", [True, False])
async def test_a_restarted_agent_is_believed_also_when_it_lost_its_memory(
    platform: Platform, tmp_path: Path, remembers: bool
) -> None:
    await platform.place()
    await platform.reaches(Phase.HEALTHY, timeout=1)
    await platform.kill_agent()
    version = (await platform.instance()).version
    platform.start_agent(tmp_path / ("agent" if remembers else "another"))
    await platform.clock.advance(10)
    assert (await platform.instance()).phase is Phase.HEALTHY
    assert (await platform.events()).count("instance.healthy") == 1
    assert (await platform.instance()).version <= version + 1
    platform.engine.die((await platform.instance()).observed.vm_id)
    await platform.clock.advance(5)
    assert (await platform.instance()).observed.attempt == 2
    assert (await platform.instance()).phase is Phase.HEALTHY
