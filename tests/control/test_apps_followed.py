"""How soon a loop sees an app of which it was hinted, with many apps about; and what it costs to begin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shellwego.control.apps import AppWish, create_app, destroy_app
from shellwego.control.loops import names as names_loop
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.names import names_counter
from shellwego.control.unit import Control, Unit
from shellwego.core.apps import App
from shellwego.core.routing import RouteState
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.wire import subjects
from tests.contract.sqlite_statements import watched
from tests.contract.store_databases import Database
from tests.control.busy_store import BusyStore
from tests.control.rollout_world import PRJ, FakeEdge, World

APPS = 300
SOON_S = 0.5


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    world = World(database.open_inline)
    await world.begin(loops=False)
    yield world
    await world.clock.run(world.end())


async def add_apps(world: World, *, projects: bool = False) -> None:
    """Many more, which come before it, each in a project of its own if `projects`."""

    def add(unit: Unit) -> None:
        (app,), (project,) = unit.tx.apps.select(), unit.tx.projects.select()
        for number in range(APPS):
            name = f"app-{number}"
            if projects:
                unit.tx.projects.insert(replace(project, id=f"prj_{number}", name=name, first=False))
            own = {"project_id": f"prj_{number}"} if projects else {}
            hostname = f"{name}.localhost"
            unit.tx.apps.insert(replace(app, id=f"app_{number:026}", name=name, hostname=hostname, **own))

    await world.control.commit(add)


def created(unit: Unit) -> App:
    project = unit.tx.projects.get(PRJ)
    assert project is not None
    return create_app(unit, project, AppWish(name="fresh"), "localhost")


def pages(edge: FakeEdge) -> dict[str, RouteState]:
    return {route.host: route.state for route in edge.table.routes}


async def test_an_app_that_was_deployed_waits_for_no_look_at_all_the_others(world: World) -> None:
    await add_apps(world)
    await world.node()
    slow = BusyStore(world.store, world.clock)
    world.spawn(rollout_loop.run(Control(slow, world.control.bus, world.clock)))
    await world.clock.advance(SOON_S)  # it has begun to look at every app
    await world.deploy("hello:v1")
    await world.clock.until(lambda: bool(world.live()), SOON_S)


async def test_who_takes_over_goes_on_first_with_what_is_under_way(world: World) -> None:
    await add_apps(world)
    await world.node()
    hears_nothing = Control(BusyStore(world.store, world.clock), MemoryBus(), world.clock)
    await world.deploy("hello:v1")
    world.spawn(rollout_loop.run(hears_nothing))
    await world.clock.until(lambda: bool(world.live()), SOON_S)


async def test_a_fresh_app_has_its_page_and_one_that_is_gone_has_none_without_waiting_for_a_timer(world: World) -> None:
    edge = await world.edge()
    for loop in (rollout_loop, routes_loop):
        world.spawn(loop.run(world.control))
    await world.clock.advance(1)
    app = await world.control.commit(created)
    await world.clock.until(lambda: pages(edge).get(app.hostname) is RouteState.STOPPED, SOON_S)
    await world.control.commit(lambda unit: destroy_app(unit, app))
    await world.clock.until(lambda: app.hostname not in pages(edge), SOON_S)


async def test_who_listens_hears_that_an_app_is_gone(world: World) -> None:
    left: list[bool] = []

    async def hear() -> None:
        async with world.control.bus.subscribe(subjects.app(world.app_id)) as hints:
            async for _ in hints:
                left.append(world.peek(lambda tx: tx.apps.get(world.app_id)) is not None)

    for part in (hear(), rollout_loop.run(world.control)):
        world.spawn(part)
    await world.clock.advance(1)
    await world.change_app(deleting=True)
    await world.clock.until(lambda: left[-1:] == [False], SOON_S)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("loop", [routes_loop, names_loop])
async def test_who_begins_to_number_reads_every_app_once(database: Database, loop: object) -> None:
    world = World(database.open_inline)
    await world.begin(loops=False)
    await add_apps(world)
    asked: list[str] = []
    with watched(asked.append):
        world.spawn(loop.run(world.control))  # type: ignore[attr-defined]
        await world.clock.advance(1)
    rows = [statement for statement in asked if "FROM apps" in statement and "apps.hostname" in statement]
    assert len(rows) == APPS // 100 + 1
    await world.end()


async def test_who_begins_to_number_names_comes_to_an_end_of_it_though_others_write(world: World) -> None:
    await add_apps(world, projects=True)
    store = BusyStore(world.store, world.clock)
    world.spawn(store.write_beside(0.25))
    world.spawn(names_loop.run(Control(store, world.control.bus, world.clock)))

    def numbers() -> list[int]:
        counters = world.peek(lambda tx: [tx.counters.get(names_counter(f"prj_{n}")) for n in range(APPS)])
        return [counter.value for counter in counters if counter]

    await world.clock.until(lambda: numbers() == [1] * APPS, 10)
