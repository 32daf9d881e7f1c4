"""The routes loop on a busy database, with more apps than one transaction could look at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from shellwego.control.loops import hints
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.routetable import ROUTES_COUNTER, route_table, routes_version
from shellwego.control.unit import Control, Unit
from shellwego.core.instances import OwnerKind, Phase
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.ports.bus import Hint
from tests.contract.sqlite_statements import watched
from tests.contract.store_databases import Database
from tests.control.busy_store import BusyStore
from tests.control.rollout_world import FakeEdge, World

APPS = 300
OTHERS_EVERY_S = 0.25
"""So often somebody else commits."""
SETTLES_S = 4.0


class SlowBus(MemoryBus):
    """It takes long until it is listened on."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    @asynccontextmanager
    async def subscribe(self, pattern: str) -> AsyncIterator[AsyncIterator[Hint]]:
        await self._clock.sleep(SETTLES_S)
        async with super().subscribe(pattern) as hints:
            yield hints


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.begin(loops=False)
    yield world
    await world.clock.run(world.end())


async def with_many_apps(world: World) -> BusyStore:
    """The world's store, as a server sees it that has to share it, and that has many apps."""

    def add(unit: Unit) -> None:
        (app,) = unit.tx.apps.select()
        for number in range(APPS):
            name = f"app-{number}"
            unit.tx.apps.insert(replace(app, id=unit.new_id("app"), name=name, hostname=f"{name}.localhost"))

    await world.control.commit(add)
    store = BusyStore(world.store, world.clock)
    world.spawn(store.write_beside(OTHERS_EVERY_S))
    return store


async def serving(world: World) -> FakeEdge:
    """An app with an instance, before anybody numbers routes; its edge."""
    await world.node()
    edge = await world.edge()
    world.spawn(rollout_loop.run(world.control))
    await world.deploy("hello:v1")
    await world.clock.until(lambda: [each.phase for each in world.live()] == [Phase.HEALTHY], 60)
    return edge


async def test_who_takes_over_has_the_edges_serve_what_became_healthy_though_there_are_many_apps(world: World) -> None:
    store = await with_many_apps(world)
    edge = await serving(world)
    world.spawn(routes_loop.run(Control(store, world.control.bus, world.clock)))
    await world.clock.until(lambda: edge.endpoints() == {each.id for each in world.live()}, 5)


async def test_an_instance_that_drains_meanwhile_is_numbered_too(world: World) -> None:
    store = await with_many_apps(world)
    edge = await serving(world)
    world.spawn(routes_loop.run(Control(store, world.control.bus, world.clock)))
    await world.deploy("hello:v2")
    await world.clock.until(lambda: bool(edge.endpoints()) and len(world.live()) == 1, 60)
    (left,) = [row for row in world.instances() if not row.live]
    assert left.unrouted_version is not None


async def test_who_takes_over_has_every_edge_look_once(world: World) -> None:
    for rises in (1, 2):
        task = world.spawn(routes_loop.run(world.control, holder="a"))
        await world.clock.advance(3 * hints.SWEEP_EVERY_S)
        counter = world.peek(lambda tx: tx.counters.get(ROUTES_COUNTER))
        assert counter is not None
        assert counter.value == rises
        task.cancel()
        await world.clock.advance(1)


async def test_an_app_that_is_gone_leaves_the_table_whoever_took_over_meanwhile(world: World) -> None:
    edge = await world.edge()
    task = world.spawn(routes_loop.run(world.control, holder="a"))
    await world.clock.until(lambda: bool(edge.tables and edge.table.routes), 5)
    task.cancel()
    await world.clock.advance(1)
    await world.control.commit(lambda unit: unit.tx.apps.delete(world.app_id))  # the last one that there was
    world.spawn(routes_loop.run(world.control, holder="b"))
    await world.clock.until(lambda: not edge.table.routes, 5)


async def test_what_was_said_before_hints_were_heard_is_seen_once_they_are(world: World) -> None:
    edge = await world.edge()
    world.spawn(routes_loop.run(Control(world.store, SlowBus(world.clock), world.clock)))
    await world.clock.advance(1)
    await world.change_app(hostname="other.localhost")
    await world.clock.advance(1)
    assert [route.host for route in edge.table.routes] == ["shop.localhost"]
    await world.clock.until(lambda: [route.host for route in edge.table.routes] == ["other.localhost"], SETTLES_S)


async def test_an_edge_that_looked_while_an_instance_was_ill_gets_it_once_it_is_well(world: World) -> None:
    """The loop looks before and after, and sees the same route."""
    node = await world.node()
    world.spawn(rollout_loop.run(world.control))
    hears_nothing = Control(world.store, MemoryBus(), world.clock)
    world.spawn(routes_loop.run(hears_nothing))
    await world.deploy("hello:v1")
    await world.clock.until(lambda: bool(numbered(world)), hints.SWEEP_EVERY_S + 1)
    node.failing.update(numbered(world))
    await world.clock.until(lambda: not world.serving(), 10)
    edge = await world.edge()
    await world.clock.advance(1)
    assert edge.tables
    assert not edge.endpoints()
    node.failing.clear()
    await world.clock.until(lambda: edge.endpoints() == numbered(world), hints.SWEEP_EVERY_S + 1)


@pytest.mark.parametrize(("owner", "rises"), [(OwnerKind.APP, True), (OwnerKind.RUN, False)])
async def test_the_table_has_another_number_where_an_instance_came_and_went(
    world: World, owner: OwnerKind, rises: bool
) -> None:
    """Between two looks, in which an edge may have got the one that is gone; a one-off run is in no table."""
    world.spawn(routes_loop.run(world.control))
    await serving(world)
    loop = routes_loop.RoutesLoop(world.control)
    await loop.renumber([world.app_id])
    before = world.peek(routes_version)
    (live,) = world.live()
    gone = replace(live, id="ins_brief", owner=owner, phase=Phase.LOST, version=1)
    await world.control.commit(lambda unit: unit.tx.instances.insert(gone))
    await loop.renumber([world.app_id])
    assert (world.peek(routes_version) > before) is rises


def numbered(world: World) -> set[str]:
    """Instances with a number of the table from which on they are in it."""
    return {row.id for row in world.live() if row.routed_version is not None}


@pytest.mark.databases("sqlite")
async def test_the_table_costs_questions_for_each_hundred_apps_and_not_for_each(database: Database) -> None:
    world = World(database.open_inline)
    await world.begin(loops=False)
    await with_many_apps(world)
    asked: list[str] = []
    with watched(asked.append):
        table = await world.store.read(route_table)
    assert len(table.routes) == APPS + 1
    assert sum(statement.startswith("SELECT") for statement in asked) <= 5 * (APPS // 100 + 1)
    await world.end()


async def test_an_app_that_is_gone_is_forgotten_as_soon_as_its_route_is_out_of_the_table(world: World) -> None:
    world.spawn(routes_loop.run(world.control))
    await serving(world)
    loop = routes_loop.RoutesLoop(world.control)
    await loop.renumber([world.app_id])
    assert loop._known.keys() == {world.app_id}

    await world.change_app(deleting=True)
    await world.clock.until(lambda: world.peek(lambda tx: tx.apps.get(world.app_id)) is None, 60)
    with_it = world.peek(routes_version)
    await loop.renumber([world.app_id])
    without_it = world.peek(routes_version)
    assert (without_it > with_it, loop._known) == (True, {})

    await loop.renumber([world.app_id])  # a hint that came late
    assert (world.peek(routes_version), loop._known) == (without_it, {})
