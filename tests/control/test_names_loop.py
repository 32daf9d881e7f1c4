"""Names on their way from what nodes report to the nodes whose guests ask for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shellwego.control.loops import hints
from shellwego.control.loops import names as names_loop
from shellwego.control.names import names_counter
from shellwego.control.unit import Unit
from shellwego.core.errors import ForbiddenError
from shellwego.core.instances import Desired, Instance, Phase
from shellwego.core.names import NetworkNames
from shellwego.ports.bus import Hint
from shellwego.wire import subjects
from tests.control.rollout_world import PRJ, World


class Naming:
    """A world with the names loop, and what a node would fetch."""

    def __init__(self) -> None:
        self.world = World()
        self.node_id = ""

    async def begin(self) -> None:
        await self.world.begin()
        self.world.loops.append(self.world.spawn(names_loop.run(self.world.control)))
        self.node_id = (await self.world.node()).node_id

    async def serving(self) -> Instance:
        """The app's one instance, healthy and named."""
        world = self.world
        await world.deploy("hello:v1")
        await world.clock.until(lambda: [each.phase for each in world.live()] == [Phase.HEALTHY], 60)
        await world.clock.advance(5)
        return world.live()[0]

    async def drain(self, instance: Instance) -> None:
        def work(unit: Unit) -> None:
            unit.tx.instances.update(replace(instance, desired=Desired.DRAIN))
            unit.hint(subjects.app(instance.app_id))

        await self.world.control.commit(work)

    async def version(self) -> str:
        return (await self.world.nodes.assignments(self.node_id)).names_version

    async def network(self) -> NetworkNames:
        (network,) = (await self.world.nodes.names(self.node_id)).networks
        return network


@pytest.fixture
async def naming() -> AsyncIterator[Naming]:
    made = Naming()
    await made.begin()
    yield made
    await made.world.end()


async def test_an_instance_that_becomes_healthy_is_found_and_one_that_drains_is_not(naming: Naming) -> None:
    before = await naming.version()
    instance = await naming.serving()
    named = await naming.version()
    assert named != before
    network = await naming.network()
    assert (network.network_id, network.hosts["shop"]) == ("net_x", (instance.observed.ipv4,))
    assert (await naming.world.nodes.names(naming.node_id)).version == named
    await naming.drain(instance)
    await naming.world.clock.advance(0.1)
    assert await naming.version() != named
    assert instance.observed.ipv4 not in (await naming.network()).hosts["shop"]


async def test_nodes_with_instances_of_the_project_are_hinted(naming: Naming) -> None:
    world = naming.world
    instance = await naming.serving()
    async with world.control.bus.subscribe(subjects.assignments(naming.node_id)) as hints:
        await naming.drain(instance)
        assert await anext(hints) == Hint(subjects.assignments(naming.node_id))


async def test_where_nothing_is_new_the_number_stays(naming: Naming) -> None:
    instance = await naming.serving()
    named = await naming.version()
    await naming.world.control.commit(lambda unit: unit.hint(subjects.app(instance.app_id)))
    await naming.world.clock.advance(2 * hints.SWEEP_EVERY_S)
    assert await naming.version() == named


async def test_names_that_were_others_for_a_moment_have_another_number(naming: Naming) -> None:
    """Some node has fetched them meanwhile, under the old one, and would keep them."""
    world = naming.world
    instance = await naming.serving()

    async def after(*rows: Instance) -> str:
        for row in rows:
            await world.control.commit(lambda unit, row=row: unit.tx.instances.update(row))
        await world.control.commit(lambda unit: unit.hint(subjects.app(instance.app_id)))
        await world.clock.advance(0.1)
        return await naming.version()

    named = await naming.version()
    ill = replace(instance, phase=Phase.UNHEALTHY)
    back = await after(ill, replace(instance, version=instance.version + 1, phase_since=instance.phase_since + 1))
    assert back != named
    brief = replace(instance, id="ins_brief", version=1, phase=Phase.LOST)
    await world.control.commit(lambda unit: unit.tx.instances.insert(brief))
    assert await after() != back


async def test_an_app_that_is_gone_leaves_the_names(naming: Naming) -> None:
    world = naming.world
    instance = await naming.serving()
    named = await naming.version()
    await world.control.commit(lambda unit: unit.tx.apps.delete(instance.app_id))
    await world.control.commit(lambda unit: unit.hint(subjects.app(instance.app_id)))
    await world.clock.advance(1)
    other = await world.control.read(lambda tx: tx.counters.get(names_counter(PRJ)))
    assert other is not None
    assert other.value > 1
    assert await naming.version() != named


async def test_only_a_node_that_is_known_is_told_names(naming: Naming) -> None:
    with pytest.raises(ForbiddenError):
        await naming.world.nodes.names("node_nobody")
