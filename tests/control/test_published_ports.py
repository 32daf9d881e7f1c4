"""Published ports on their way from an app to the nodes that answer at them, and their end with the app."""

from __future__ import annotations

import pytest

from shellwego.control.apps import destroy_app
from shellwego.control.publishing import KNOWN_S, PortWish, publish_port
from shellwego.control.unit import Unit
from shellwego.core.errors import ForbiddenError
from shellwego.core.instances import Phase
from shellwego.core.publishing import OpenPort, PublishedPort
from shellwego.ports.bus import Hint
from shellwego.wire import subjects
from tests.control.rollout_world import World

OFFERED = range(20_000, 30_000)


async def published(world: World, port: int = 20_000) -> PublishedPort:
    def work(unit: Unit) -> PublishedPort:
        app = unit.tx.apps.get(world.app_id)
        assert app is not None
        return publish_port(unit, app, PortWish(port=port), OFFERED)

    return await world.control.commit(work)


async def told(world: World, node_id: str) -> tuple[OpenPort, ...]:
    await world.clock.advance(KNOWN_S)
    return (await world.nodes.ports(node_id)).ports


async def test_every_node_is_told_of_it_and_of_who_serves(world: World) -> None:
    one, other = await world.node("one"), await world.node("other")
    await published(world)
    assert [port.endpoints for port in await told(world, other.node_id)] == [()]
    before = (await world.nodes.assignments(one.node_id)).ports_version
    await world.deploy("hello:v1")
    await world.clock.until(lambda: [each.phase for each in world.live()] == [Phase.HEALTHY], 60)
    [instance] = world.live()
    for node in (one, other):
        [port] = await told(world, node.node_id)
        assert [(each.vm_id, each.taking) for each in port.endpoints] == [(instance.observed.vm_id, True)]
    after = (await world.nodes.assignments(one.node_id)).ports_version
    assert after == (await world.nodes.assignments(other.node_id)).ports_version != before


async def test_nodes_are_hinted_when_one_is_published(world: World) -> None:
    node = await world.node()
    async with world.control.bus.subscribe(subjects.assignments(node.node_id)) as hints:
        await published(world)
        assert await anext(hints) == Hint(subjects.assignments(node.node_id))


async def test_only_a_node_that_is_known_is_told(world: World) -> None:
    with pytest.raises(ForbiddenError):
        await world.nodes.ports("node_nobody")


async def test_ports_go_with_their_app_and_are_free_again(world: World) -> None:
    node = await world.node()
    await world.deploy("hello:v1")
    await published(world)
    await world.ask(destroy_app)
    await world.clock.until(lambda: world.peek(lambda tx: tx.apps.get(world.app_id)) is None, 60)
    assert await told(world, node.node_id) == ()
    assert world.peek(lambda tx: tx.published_ports.count()) == 0
