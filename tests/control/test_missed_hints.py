"""A bus whose way was cut says so when it is back: the loops look at everything then, and do not wait for their timers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

import pytest

from shellwego.control.loops import hints
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.unit import Control
from shellwego.core.deployments import CanaryPlan
from shellwego.core.instances import Instance
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.ports.bus import Hint
from tests.control.rollout_world import PROCESS, World

Run = Callable[[Control], Coroutine[None, None, None]]


class CutBus(MemoryBus):
    """Hints go nowhere, until it is mended."""

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        pass

    def mend(self) -> None:
        for listener in self._listeners:
            listener.put(Hint(listener.pattern, missed=True))


async def begun(world: World, run: Run) -> CutBus:
    bus = CutBus()
    world.spawn(run(Control(world.store, bus, world.clock)))
    await world.clock.advance(0.1)
    return bus


async def instances(world: World) -> list[Instance]:
    return await world.control.read(lambda tx: tx.instances.select())


@pytest.mark.parametrize("mended", [True, False])
async def test_the_rollout_loop_looks_at_every_app(world: World, mended: bool) -> None:
    bus = await begun(world, rollout_loop.run)
    await world.deploy("one")
    await world.clock.advance(0.1)
    assert await instances(world) == []
    if mended:
        bus.mend()
    await world.clock.advance(0.1)
    assert bool(await instances(world)) is mended


@pytest.mark.parametrize("mended", [True, False])
async def test_the_routes_loop_looks_at_every_app(world: World, mended: bool) -> None:
    await world.node()
    bus = await begun(world, routes_loop.run)
    world.spawn(rollout_loop.run(world.control))
    await world.deploy("one")
    await world.clock.advance(hints.CHANGED_EVERY_S / 2)
    assert [instance.routed_version for instance in await instances(world)] == [None]
    if mended:
        bus.mend()
    await world.clock.advance(0.1)
    assert [instance.routed_version is not None for instance in await instances(world)] == [mended]


async def test_what_changed_is_seen_soon_though_no_hint_came(world: World) -> None:
    await world.node()
    await begun(world, rollout_loop.run)
    await world.finished(await world.deploy("one"))
    await world.clock.advance(3 * hints.CHANGED_EVERY_S)
    await world.change_app(counts={PROCESS.name: 3})
    await world.clock.advance(hints.CHANGED_EVERY_S)
    assert len(world.live()) == 3


async def test_an_instance_comes_into_the_routes_soon_though_no_hint_came(world: World) -> None:
    await world.node()
    await begun(world, routes_loop.run)
    world.spawn(rollout_loop.run(world.control))
    await world.deploy("one")
    await world.clock.until(lambda: bool(world.serving()), hints.CHANGED_EVERY_S / 2)
    await world.clock.until(
        lambda: all(row.routed_version is not None for row in world.live()), hints.CHANGED_EVERY_S + 1
    )


async def test_the_weight_of_a_canarys_step_comes_into_the_routes_soon_though_no_hint_came(world: World) -> None:
    """With one instance of each release a step changes no instance."""
    await world.node()
    edge = await world.edge()
    await begun(world, routes_loop.run)
    world.spawn(rollout_loop.run(world.control))
    await world.finished(await world.deploy("one"))
    newer = await world.deploy("two", strategy="canary", canary=CanaryPlan(weights=(10, 50), pause_s=75))

    def weights() -> list[int]:
        return [endpoint.weight for route in edge.table.routes for endpoint in route.endpoints]

    await world.clock.until(lambda: len(set(weights())) == 2, 60)
    await world.clock.until(lambda: world.deployment(newer).step.number == 1, 90)  # no look at all apps is near
    await world.clock.until(lambda: len(weights()) == 2 and len(set(weights())) == 1, hints.CHANGED_EVERY_S + 1)


@pytest.fixture
def world(quiet_world: World) -> World:
    return quiet_world
