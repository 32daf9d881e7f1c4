"""Nodes that fall silent: what is concluded, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest

from shellwego.control.loops.nodes import Listening, NodesLoop
from shellwego.control.scheduling import cordon, uncordon
from shellwego.core.deployments import DeploymentState
from shellwego.core.errors import UnavailableError
from shellwego.core.instances import Phase
from shellwego.core.liveness import BEAT_S
from shellwego.core.nodes import NodeHealth
from shellwego.core.volumeleases import OVER_S
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.store import Transaction, eq
from tests.control.rollout_world import FakeNode, World, node_row

T = TypeVar("T")


async def two_nodes_with_an_app(world: World) -> tuple[FakeNode, FakeNode]:
    """Returns the node that runs the app, and the other."""
    one, two = await world.node("one"), await world.node("two")
    done = await world.finished(await world.deploy("hello:v1"))
    assert done.state is DeploymentState.SUCCEEDED
    return (one, two) if one.running() else (two, one)


async def test_a_node_that_dies_is_detected_in_five_seconds_and_its_instances_run_elsewhere(world: World) -> None:
    dead, other = await two_nodes_with_an_app(world)
    dead.silent = True
    began = world.clock.monotonic()
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.DOWN, 10)
    assert world.clock.monotonic() - began <= 6.5
    await world.clock.until(lambda: len(world.serving()) == 1, 5)
    assert world.serving()[0].node_id == other.node_id
    assert [i.phase for i in world.instances() if i.node_id == dead.node_id] == [Phase.LOST]
    assert node_row(world, dead).epoch == 2


async def test_its_endpoints_leave_the_routes_first(world: World) -> None:
    edge = await world.edge()
    dead, _ = await two_nodes_with_an_app(world)
    (lost,) = world.serving()
    await world.clock.until(lambda: edge.endpoints() == {lost.id}, 5)
    dead.silent = True
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.DOWN, 10)
    await world.clock.until(lambda: lost.id not in edge.endpoints(), 1)


async def test_no_table_has_what_comes_in_their_place_before_one_has_lost_them(world: World) -> None:
    """Requests are not sent to the dead while others boot."""
    edge = await world.edge()
    one, two = await world.node("one"), await world.node("two")
    await world.change_app(counts={"web": 2})
    await world.finished(await world.deploy("hello:v1"))
    await world.clock.until(lambda: len(edge.endpoints()) == 2, 5)
    before = edge.endpoints()
    (lost,) = [i.id for i in world.serving() if i.node_id == one.node_id]
    await world.control.commit(lambda unit: cordon(unit, node_row(world, two)))  # nothing comes in its place yet
    one.silent = True
    await world.clock.until(lambda: node_row(world, one).health is NodeHealth.DOWN, 10)
    began = world.clock.monotonic()
    await world.clock.until(lambda: edge.endpoints() == before - {lost}, 2)
    assert world.clock.monotonic() - began <= 0.5, "the dead is gone at once, whatever else boots"
    await world.control.commit(lambda unit: uncordon(unit, node_row(world, two)))
    await world.clock.until(lambda: len(edge.endpoints()) == 2, 10)
    seen = [{e.instance_id for route in table.routes for e in route.endpoints} for table in edge.tables]
    since = seen[seen.index(before - {lost}) :]
    assert all(lost not in endpoints for endpoints in since)
    assert all(endpoints for endpoints in since), "the other one serves throughout"


async def test_when_it_returns_the_new_epoch_tells_it_what_to_stop(world: World) -> None:
    dead, _ = await two_nodes_with_an_app(world)
    dead.silent = True
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.DOWN, 10)
    await world.clock.until(lambda: len(world.serving()) == 1, 5)
    dead.silent = False
    await world.clock.until(lambda: dead.vms == {}, 5)
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.READY, 5)
    assert (dead.epoch, len(world.live())) == (2, 1)


async def test_nothing_new_is_placed_on_a_suspect_node(world: World) -> None:
    dead, other = await two_nodes_with_an_app(world)
    dead.silent = True
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.SUSPECT, 10)
    await world.change_app(counts={"web": 3})
    await world.clock.until(lambda: other.running() == 2, 1)


async def test_a_suspect_node_that_is_heard_again_lost_nothing(world: World) -> None:
    node, _ = await two_nodes_with_an_app(world)
    (before,) = world.serving()
    node.silent = True
    await world.clock.until(lambda: node_row(world, node).health is NodeHealth.SUSPECT, 10)
    node.silent = False
    await world.clock.until(lambda: node_row(world, node).health is NodeHealth.READY, 3)
    assert (world.serving()[0].id, node.boots, node_row(world, node).epoch) == (before.id, 1, 1)


async def test_ten_minutes_without_the_platform_change_nothing() -> None:
    """The same VMs, the same epoch: silence that nobody could have heard is none."""
    world = World()
    await world.begin()
    try:
        node = await world.node()
        await world.finished(await world.deploy("hello:v1"))
        (before,) = world.serving()
        await world.end()
        world.tasks.clear()
        await world.clock.advance(600)
        world.start_loops()
        await world.clock.advance(8)
        world.spawn(node.run())
        await world.clock.advance(60)
        assert [i.id for i in world.serving()] == [before.id]
        assert (node.boots, node.running(), node_row(world, node).epoch) == (1, 1, 1)
    finally:
        await world.end()


@dataclass(slots=True)
class FullStore:
    """A store that answers what is asked, and keeps nothing while it is full."""

    store: MemoryStore
    full: bool = False

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        if self.full:
            raise UnavailableError("disk-full", "the store's disk is full")
        return await self.store.transact(fn)

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        return await self.store.read(fn)

    async def close(self) -> None:
        await self.store.close()


async def test_nothing_is_held_against_nodes_that_spoke_to_a_full_store() -> None:
    """It could be read all the while, so their silence was seen; and who judges first after it has heard nobody yet."""
    stores: list[FullStore] = []
    world = World(lambda clock: stores.append(FullStore(MemoryStore(clock))) or stores[0])
    await world.begin()
    try:
        nodes = [await world.node(f"n{number}") for number in range(4)]
        for seconds in (8.0, 30.2, 30.5, 30.8, 31.1, 120.0):
            stores[0].full = True
            await world.clock.advance(seconds)
            stores[0].full = False
            await world.clock.advance(10 + seconds / 30)
            assert [node_row(world, node).epoch for node in nodes] == [1] * 4
    finally:
        await world.end()


async def test_a_judgement_falls_when_the_node_was_heard_in_between(world: World) -> None:
    node = await world.node()
    seen = node_row(world, node)
    await world.clock.advance(5)
    await NodesLoop(world.control, Listening(world.control))._conclude(seen, NodeHealth.DOWN)
    assert node_row(world, node).health is NodeHealth.READY


async def test_every_judgement_is_an_event(world: World) -> None:
    node = await world.node()
    node.silent = True
    await world.clock.advance(10)
    told = world.peek(lambda tx: tx.events.select(eq("resource", node.node_id)))
    assert [(event.type, event.severity) for event in told] == [
        ("node.registered", "info"),
        ("node.suspect", "warning"),
        ("node.down", "error"),
    ]


async def test_no_lease_is_in_force_on_a_node_once_it_was_silent_for_more_than_a_term(world: World) -> None:
    dead, _ = await two_nodes_with_an_app(world)
    dead.silent = True
    began = world.clock.monotonic()
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.DOWN, 10)
    assert not node_row(world, dead).leases_over
    await world.clock.until(lambda: node_row(world, dead).leases_over, 2 * OVER_S)
    assert OVER_S - BEAT_S <= world.clock.monotonic() - began <= OVER_S + 5


async def test_whoever_judges_anew_listens_for_a_whole_term_before_it_says_so(world: World) -> None:
    dead, _ = await two_nodes_with_an_app(world)
    dead.silent = True
    await world.clock.advance(OVER_S - 10)
    await world.restart_loops()
    await world.clock.advance(OVER_S - 10)
    assert not node_row(world, dead).leases_over
    await world.clock.advance(15)
    assert node_row(world, dead).leases_over


async def test_a_node_that_was_heard_again_is_silent_anew_in_another_epoch(world: World) -> None:
    dead, _ = await two_nodes_with_an_app(world)
    dead.silent = True
    await world.clock.until(lambda: node_row(world, dead).leases_over, 2 * OVER_S)
    dead.silent = False
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.READY, 10)
    assert not node_row(world, dead).leases_over
    dead.silent = True
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.DOWN, 10)
    assert not node_row(world, dead).leases_over


async def test_a_store_whose_clock_is_set_back_hears_nodes_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = await two_nodes_with_an_app(world)
    monkeypatch.setattr(world.clock, "_start", world.clock._start - 3600)
    await world.clock.advance(30)
    assert (node_row(world, one).health, node_row(world, one).epoch) == (NodeHealth.READY, 1)
