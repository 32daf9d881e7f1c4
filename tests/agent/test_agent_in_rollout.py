"""An agent that is restarted in the middle of a rollout: the rollout goes on, and no VM is doubled, lost or ended by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shellwego.agent.daemon import Agent
from shellwego.core.deployments import DeploymentState
from shellwego.core.vms import VmPhase, VmView
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink.memory import MemoryLink, MemoryNodeUplink
from tests.agent.agent_world import FakeProber
from tests.agent.kept import kept_in
from tests.control.rollout_world import FakeEdge, World

AWAY = "no answer from https://server:7081"
LIVES = (VmPhase.PREPARING, VmPhase.STARTING, VmPhase.RUNNING)


class Platform:
    """All of the control plane, an edge, and one real agent over an engine that outlives it."""

    def __init__(self, state_dir: Path) -> None:
        self.world = World()
        self.clock = self.world.clock
        self.engine = MemoryEngine(self.clock)
        self.edge: FakeEdge
        self._state_dir = state_dir
        self._agent: asyncio.Task[None]

    async def open(self) -> None:
        await self.world.begin()
        self.start_agent()
        await self.clock.advance(1)
        self.edge = await self.world.edge()

    def start_agent(self) -> None:
        agent = Agent(
            engine=self.engine,
            uplink=MemoryNodeUplink(self.world.nodes, MemoryLink(self.clock)),
            listener=MemoryStreams(),
            bus=self.world.control.bus,
            clock=self.clock,
            name="one",
            state=kept_in(self._state_dir),
            prober=FakeProber(self.clock),
        )
        self._agent = asyncio.create_task(agent.run())

    async def kill_agent(self) -> None:
        self._agent.cancel()
        await asyncio.gather(self._agent, return_exceptions=True)

    async def close(self) -> None:
        await self.kill_agent()
        await self.world.end()
        await self.engine.close(keep_vms=False)

    async def living(self) -> list[VmView]:
        return [view for view in await self.engine.observe() if view.phase in LIVES]


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    platform = Platform(tmp_path / "agent")
    await platform.open()
    yield platform
    await platform.close()


@pytest.mark.parametrize("away_s", [0.0, 1.0])
@pytest.mark.parametrize("moment", [0.02, 0.1, 0.21, 0.25, 0.4, 0.6, 1.0])
async def test_a_rollout_survives_the_restart_of_its_agent(platform: Platform, moment: float, away_s: float) -> None:
    world, edge = platform.world, platform.edge
    await world.finished(await world.deploy("hello:v1"))
    await world.change_app(counts={"web": 2})
    await platform.clock.until(lambda: len(edge.endpoints()) == 2, 10)
    newer = await world.deploy("hello:v2")
    await platform.clock.advance(moment)
    before = {view.vm_id for view in await platform.living()}
    await platform.kill_agent()
    await platform.clock.advance(away_s)
    assert before <= {view.vm_id for view in await platform.living()}, "an agent that ends takes a VM along"
    platform.start_agent()
    while world.deployment(newer).finished_at is None:
        await platform.clock.advance(0.05)
        assert edge.endpoints()
        owners = [view.instance_id for view in await platform.living()]
        assert len(owners) == len(set(owners)) <= 4
    assert world.deployment(newer).state is DeploymentState.SUCCEEDED
    await platform.clock.advance(60)
    assert {view.instance_id for view in await platform.living()} == edge.endpoints()
    assert len(edge.endpoints()) == 2
    assert {i.observed.attempt for i in world.serving()} == {1}, "no VM was ended by the restart"
    assert {i.release_id for i in world.live()} == {world.deployment(newer).release_id}


async def test_a_rollout_waits_for_a_server_that_is_away_while_its_node_pulls(platform: Platform) -> None:
    world, engine = platform.world, platform.engine
    engine.lacks = AWAY
    deployment = await world.deploy("hello:v1")
    await platform.clock.advance(20)
    waiting = world.deployment(deployment)
    assert waiting.state is DeploymentState.IN_PROGRESS
    assert AWAY in waiting.reason
    engine.lacks = ""
    assert (await world.finished(deployment)).state is DeploymentState.SUCCEEDED
    assert [i.observed.ends for i in world.serving()] == [0]


async def test_a_rollout_waits_for_no_server_beyond_its_deadline(platform: Platform) -> None:
    platform.engine.lacks = AWAY
    done = await platform.world.finished(await platform.world.deploy("hello:v1", wait_timeout_s=30.0))
    assert (done.state, done.reason_code) == (DeploymentState.FAILED, "timed-out")
    assert AWAY in done.reason


async def test_a_release_command_is_not_failed_by_a_server_that_is_away(platform: Platform) -> None:
    world, engine = platform.world, platform.engine
    engine.lacks = AWAY
    deployment = await world.deploy("hello:v1", release_command=("exit", "0"))
    await platform.clock.advance(20)
    assert world.deployment(deployment).state is DeploymentState.PENDING
    engine.lacks = ""
    assert (await world.finished(deployment)).state is DeploymentState.SUCCEEDED
