"""What an operator changes of nodes, and nodes that are removed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from shellwego.control import scheduling
from shellwego.control.nodeadmin import NodeWish, remove_node, update_node
from shellwego.control.scheduling import DrainWish
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.instances import Phase
from shellwego.core.nodes import MAX_LABELS, Node, NodeHealth, Scheduling
from shellwego.ports.store import eq
from tests.control.rollout_world import FakeNode, World, node_row


async def update(world: World, node: FakeNode, **wish: object) -> Node:
    return await world.control.commit(
        lambda unit: update_node(unit, node_row(world, node), NodeWish(**wish))  # type: ignore[arg-type]
    )


async def remove(world: World, node: FakeNode, *, force: bool = False) -> None:
    await world.control.commit(lambda unit: remove_node(unit, node_row(world, node), force=force))


async def test_labels_are_set_and_removed_one_by_one(world: World) -> None:
    node = await world.node()
    await update(world, node, labels={"disk": "ssd", "example.com/rack": "A-1", "empty": ""})
    changed = await update(world, node, labels={"disk": "nvme", "empty": None, "never": None})
    assert changed.labels == {"disk": "nvme", "example.com/rack": "A-1"}
    events = world.peek(lambda tx: tx.events.select(eq("type", "node.changed")))
    assert [event.data["labels"] for event in events] == ["disk, empty, example.com/rack", "disk, empty, never"]


async def test_a_change_that_changes_nothing_writes_nothing(world: World) -> None:
    node = await world.node()
    before = (await update(world, node, labels={"disk": "ssd"}, region="eu", zone="a")).version
    assert (await update(world, node, labels={"disk": "ssd"}, region="eu")).version == before


async def test_an_agent_that_registers_again_keeps_what_the_operator_said(world: World) -> None:
    node = await world.node()
    await update(world, node, labels={"disk": "ssd"}, region="eu", zone="a")
    world.spawn(node.run())
    await world.clock.advance(5)
    stored = node_row(world, node)
    assert (stored.labels, stored.region, stored.zone) == ({"disk": "ssd"}, "eu", "a")


async def test_what_runs_stays_when_its_node_changes_its_region_and_what_comes_is_told_the_new_one(
    world: World,
) -> None:
    node = await world.node()
    await world.finished(await world.deploy("hello:v1"))
    (before,) = world.serving()
    await update(world, node, region="eu")
    await world.clock.advance(30)
    assert [i.id for i in world.live()] == [before.id]
    assert node.boots == 1
    (item,) = (await world.nodes.assignments(node.node_id)).items
    assert item.workload.env["SHELLWEGO_REGION"] == "eu"


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"labels": {"": "x"}}, "labels."),
        ({"labels": {"Disk": "x"}}, "labels.Disk"),
        ({"labels": {"a" * 64: "x"}}, f"labels.{'a' * 64}"),
        ({"labels": {"disk": "a b"}}, "labels.disk"),
        ({"labels": {"disk": "x" * 64}}, "labels.disk"),
        ({"labels": {f"n{n}": "x" for n in range(MAX_LABELS + 1)}}, "labels"),
        ({"region": ""}, "region"),
        ({"region": "eu/1"}, "region"),
        ({"zone": "-a"}, "zone"),
    ],
)
async def test_what_nothing_can_be_called_is_refused_by_field(
    world: World, wish: Mapping[str, object], field: str
) -> None:
    node = await world.node()
    with pytest.raises(InvalidError) as refused:
        await update(world, node, **wish)
    assert [fault.field for fault in refused.value.errors] == [field]
    assert (node_row(world, node).labels, node_row(world, node).region) == ({}, "local")


async def test_a_node_in_use_is_not_removed(world: World) -> None:
    node = await world.node()
    with pytest.raises(ConflictError, match="is ready and open"):
        await remove(world, node)
    await world.control.commit(lambda unit: scheduling.cordon(unit, node_row(world, node)))
    with pytest.raises(ConflictError, match="is ready and cordoned"):
        await remove(world, node)


async def test_a_drained_node_is_removed(world: World) -> None:
    node = await world.node()
    await world.control.commit(lambda unit: scheduling.drain(unit, node_row(world, node), DrainWish()))
    await world.clock.until(lambda: node_row(world, node).scheduling is Scheduling.DRAINED, 5)
    await remove(world, node)
    assert world.peek(lambda tx: tx.nodes.get(node.node_id)) is None


async def test_a_node_that_is_down_is_removed_and_comes_back_as_a_new_one_with_nothing(world: World) -> None:
    one, two = await world.node("one"), await world.node("two")
    await world.finished(await world.deploy("hello:v1"))
    dead, other = (one, two) if one.running() else (two, one)
    dead.silent = True
    await world.clock.until(lambda: node_row(world, dead).health is NodeHealth.DOWN, 10)
    removed, epoch = dead.node_id, node_row(world, dead).epoch
    await remove(world, dead)
    await world.clock.until(lambda: len(world.serving()) == 1, 10)
    dead.silent = False
    world.spawn(dead.run())
    await world.clock.until(lambda: dead.node_id != removed, 5)
    await world.clock.until(lambda: dead.vms == {}, 5)
    assert node_row(world, dead).epoch >= epoch - 1
    assert ([i.node_id for i in world.live()], dead.running(), other.running()) == ([other.node_id], 0, 1)


async def test_by_force_any_node_is_removed_and_what_ran_there_comes_elsewhere(world: World) -> None:
    one, two = await world.node("one"), await world.node("two")
    await world.finished(await world.deploy("hello:v1"))
    (lost,) = world.serving()
    at, other = (one, two) if lost.node_id == one.node_id else (two, one)
    await remove(world, at, force=True)
    await world.clock.until(lambda: len(world.serving()) == 1, 10)
    assert [i.phase for i in world.instances() if i.id == lost.id] == [Phase.LOST]
    assert world.serving()[0].node_id == other.node_id
    (event,) = world.peek(lambda tx: tx.events.select(eq("type", "node.removed")))
    assert event.data == {"name": at.name, "lost": "1"}
