"""A node by hand, to which one instance is assigned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.core.assignments import NodeReport, Registration
from shellwego.core.instances import Instance, Observed, Phase
from shellwego.core.nodes import NodeFacts
from shellwego.drivers.kms.memory import MemoryKms
from tests.control.rollout_world import World, node_facts


class Reporter:
    """Nobody but the test speaks for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes = Nodes(world.control, Sealer(world.control, MemoryKms()))
        self.node_id = ""
        self.instance_id = ""
        self.epoch = 1
        self.sequence = 0

    async def begin(self) -> None:
        answer = await self.nodes.register(Registration(name="one", facts=node_facts()))
        self.node_id = answer.node_id
        await self.world.deploy("hello:v1")
        await self.world.clock.until(lambda: bool(self.world.live()), 5)
        (instance,) = self.world.live()
        self.instance_id = instance.id

    async def say(
        self,
        observed: Observed,
        *,
        sequence: int | None = None,
        epoch: int | None = None,
        facts: NodeFacts | None = None,
    ) -> Instance:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        self.answer = await self.nodes.report(
            NodeReport(
                node_id=self.node_id,
                epoch=self.epoch if epoch is None else epoch,
                sequence=self.sequence,
                facts=facts or node_facts(),
                instances={self.instance_id: observed},
            )
        )
        return self.instance

    @property
    def instance(self) -> Instance:
        return next(i for i in self.world.instances() if i.id == self.instance_id)


@asynccontextmanager
async def reporting() -> AsyncIterator[Reporter]:
    """A control plane of which it is the only node."""
    world = World()
    await world.begin()
    reporter = Reporter(world)
    await reporter.begin()
    yield reporter
    await world.end()


def healthy(address: str = "10.64.0.9") -> Observed:
    return Observed(phase=Phase.HEALTHY, address=address, attempt=1)
