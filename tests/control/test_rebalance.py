"""Instances that are moved from full nodes to emptier ones, on an operator's word."""

from __future__ import annotations

import pytest

from shellwego.control import rebalance, scheduling
from shellwego.core.apps import Process
from shellwego.core.evicted import SLOW_AFTER_S
from shellwego.core.instances import Eviction
from tests.control.rollout_world import GIB, FakeNode, World, node_row

LARGE = Process(memory_bytes=GIB)


async def joined_empty(world: World) -> tuple[FakeNode, FakeNode]:
    """A node with six instances, and one that joined after."""
    one = await world.node("one")
    await world.change_app(counts={"web": 6})
    await world.finished(await world.deploy("hello:v1", process=LARGE))
    return one, await world.node("two")


def marks(world: World) -> list[Eviction]:
    return sorted(i.eviction for i in world.live())


async def test_a_plan_moves_nothing_by_itself(world: World) -> None:
    one, two = await joined_empty(world)
    await world.clock.advance(20)
    planned = world.peek(rebalance.rebalance)
    assert [(move.from_node, move.to_node) for move in planned.moves] == [(one.node_id, two.node_id)] * 3
    assert (one.running(), two.running()) == (6, 0)


async def test_what_is_planned_moves_and_none_is_missing_meanwhile(world: World) -> None:
    one, two = await joined_empty(world)
    await world.control.commit(rebalance.begin)
    least = 6

    def balanced() -> bool:
        nonlocal least
        least = min(least, len(world.serving()))
        return (one.running(), two.running()) == (3, 3)

    await world.clock.until(balanced, 60)
    assert least == 6
    await world.clock.advance(10)
    assert (one.running(), two.running(), marks(world)) == (3, 3, [Eviction.NONE] * 6)
    assert world.peek(rebalance.rebalance).moves == ()


async def test_asked_twice_it_queues_once(world: World) -> None:
    one, two = await joined_empty(world)
    await world.control.commit(rebalance.begin)
    assert (await world.control.commit(rebalance.begin)).moves == ()
    await world.clock.until(lambda: (one.running(), two.running()) == (3, 3), 60)


async def test_a_few_move_at_a_time_and_what_is_queued_may_still_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebalance, "MOVES_AT_A_TIME", 1)
    one, two = await joined_empty(world)
    await world.control.commit(rebalance.begin)
    await world.clock.until(lambda: Eviction.GENTLE in marks(world), 5)
    assert marks(world).count(Eviction.GENTLE) == 1
    state = world.peek(rebalance.rebalance)
    assert (state.queued, state.moving, state.moves) == (2, 1, ())
    await world.clock.until(lambda: two.running() == 1, 5)
    await world.control.commit(rebalance.cancel)
    await world.clock.until(lambda: len(world.live()) == 6, 20)
    await world.clock.advance(20)
    assert (one.running(), two.running()) == (5, 1)


async def test_one_that_cannot_go_on_holds_up_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in its place never becomes healthy."""
    monkeypatch.setattr(rebalance, "MOVES_AT_A_TIME", 1)
    one, two = await joined_empty(world)
    two.sick.add("sha256:hello:v1")
    await world.control.commit(rebalance.begin)
    await world.clock.until(lambda: marks(world).count(Eviction.QUEUED) == 2, 5)
    await world.clock.advance(SLOW_AFTER_S - 10)
    assert marks(world).count(Eviction.QUEUED) == 2
    await world.clock.until(lambda: marks(world).count(Eviction.QUEUED) == 1, 20)
    assert len(world.serving()) == one.running() == 6


async def test_what_finds_no_room_any_more_when_its_turn_comes_stays(world: World) -> None:
    one, two = await joined_empty(world)
    await world.control.commit(lambda unit: (rebalance.begin(unit), scheduling.cordon(unit, node_row(world, two))))
    await world.clock.advance(10)
    assert (one.running(), two.running(), marks(world)) == (6, 0, [Eviction.NONE] * 6)


async def test_what_is_queued_on_a_node_that_is_then_emptied_leaves_with_the_rest(world: World) -> None:
    one, two = await joined_empty(world)
    wish = scheduling.DrainWish()
    await world.control.commit(lambda unit: (rebalance.begin(unit), scheduling.drain(unit, node_row(world, one), wish)))
    await world.clock.until(lambda: (one.running(), two.running()) == (0, 6), 60)
    assert len(world.serving()) == 6
