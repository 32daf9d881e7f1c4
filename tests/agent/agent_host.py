"""A node of a simulated world, whose agent can be killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from shellwego.agent.daemon import Agent
from shellwego.control.nodes import Nodes
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink.memory import MemoryLink, MemoryNodeUplink
from tests.agent.agent_world import FakeProber
from tests.agent.kept import kept_in
from tests.control.rollout_world import World


class AgentHost:
    """An engine that outlives its agent, and the wire to the control plane; `nodes`: who takes its calls, if not the
    world's own."""

    def __init__(self, world: World, name: str, state_dir: Path, nodes: Nodes | None = None) -> None:
        self.world, self.name = world, name
        self.engine = MemoryEngine(world.clock, name=name)
        self.link = MemoryLink(world.clock)
        self.agent: Agent | None = None
        self._state_dir = state_dir
        self._nodes = nodes
        self._task: asyncio.Task[None] | None = None

    def further(self) -> dict[str, Any]:
        """What an agent is given beside, by the names of its parameters."""
        return {"listener": MemoryStreams()}

    def start(self) -> None:
        self.agent = Agent(
            engine=self.engine,
            uplink=MemoryNodeUplink(self._nodes or self.world.nodes, self.link),
            bus=self.world.control.bus,
            clock=self.world.clock,
            name=self.name,
            state=kept_in(self._state_dir),
            prober=FakeProber(self.world.clock),
            **self.further(),
        )
        self._task = asyncio.create_task(self.agent.run())

    async def kill(self) -> None:
        """End its agent, if it has any."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
