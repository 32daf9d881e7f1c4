"""Nodes that go down again and again get nothing new until they were steady."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shellwego.control import scheduling
from shellwego.core.nodes import NodeHealth
from shellwego.ports.store import eq
from tests.control.rollout_world import FakeNode, World, node_row

STEADY_S = 15.0


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("shellwego.core.liveness.STEADY_S", STEADY_S)
    world = World()
    await world.begin()
    yield world
    await world.end()


async def go_down(world: World, node: FakeNode) -> None:
    node.silent = True
    await world.clock.until(lambda: node_row(world, node).health is NodeHealth.DOWN, 10)


async def come_up(world: World, node: FakeNode) -> None:
    node.silent = False
    await world.clock.until(lambda: node_row(world, node).health is NodeHealth.READY, 5)


async def flap(world: World, node: FakeNode, times: int = 3) -> None:
    for _ in range(times):
        await go_down(world, node)
        await come_up(world, node)


def told(world: World, node: FakeNode) -> list[str]:
    kinds = ("node.flapping", "node.steady")
    return [e.type for e in world.peek(lambda tx: tx.events.select(eq("resource", node.node_id))) if e.type in kinds]


async def test_a_node_that_flaps_gets_nothing_new_until_it_was_steady(world: World) -> None:
    bad, good = await world.node("bad"), await world.node("good")
    await flap(world, bad)
    assert told(world, bad) == ["node.flapping"]
    await world.change_app(counts={"web": 2})
    await world.finished(await world.deploy("hello:v1"))
    assert (bad.running(), good.running()) == (0, 2)
    await world.clock.advance(STEADY_S + 2)
    assert told(world, bad) == ["node.flapping", "node.steady"]
    await world.change_app(counts={"web": 4})
    await world.clock.until(lambda: bad.running() == 2, 5)


async def test_a_silence_in_between_begins_the_steady_time_anew(world: World) -> None:
    bad = await world.node("bad")
    await world.node("good")
    await flap(world, bad)
    await world.clock.advance(STEADY_S - 5)
    bad.silent = True
    await world.clock.until(lambda: node_row(world, bad).health is NodeHealth.SUSPECT, 10)
    await come_up(world, bad)
    await world.clock.advance(STEADY_S - 5)
    assert told(world, bad) == ["node.flapping"]
    await world.clock.advance(10)
    assert told(world, bad) == ["node.flapping", "node.steady"]


async def test_where_no_node_is_steady_the_flapping_one_is_taken(world: World) -> None:
    bad = await world.node("bad")
    await flap(world, bad)
    await world.finished(await world.deploy("hello:v1"))
    assert bad.running() == 1


async def test_the_filters_say_so_where_the_steady_ones_have_no_room(world: World) -> None:
    bad = await world.node("bad")
    await world.node("small", memory_bytes=1)
    await flap(world, bad)
    await world.deploy("hello:v1")
    await world.clock.advance(5)
    (waiting,) = world.live()
    assert waiting.placement_reason == (
        "no node fits: 1 goes down again and again, 1 lacks memory (need 256 MiB, best has 0 MiB)"
    )


async def test_an_operator_may_let_it_have_vms_before(world: World) -> None:
    bad, good = await world.node("bad"), await world.node("good")
    await flap(world, bad)
    await world.control.commit(lambda unit: scheduling.uncordon(unit, node_row(world, bad)))
    await world.change_app(counts={"web": 2})
    await world.finished(await world.deploy("hello:v1"))
    assert (bad.running(), good.running()) == (1, 1)
    await go_down(world, bad)
    assert node_row(world, bad).flapping_since is None, "what was is forgotten"


async def test_what_was_lost_each_time_runs_once_in_the_end(world: World) -> None:
    """It comes and goes with VMs on it: the new epoch tells it each time what to stop."""
    bad, good = await world.node("bad"), await world.node("good")
    await world.change_app(counts={"web": 4})
    await world.finished(await world.deploy("hello:v1"))
    for _ in range(3):
        await go_down(world, bad)
        await world.clock.until(lambda: len(world.serving()) == 4, 10)
        await come_up(world, bad)
        await world.clock.until(lambda: not bad.running(), 10)
    await world.clock.advance(20)
    assert (bad.running(), good.running(), len(world.live())) == (0, 4, 4)
    assert node_row(world, bad).epoch == 4
