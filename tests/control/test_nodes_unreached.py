"""A node that no other one reaches serves all the same; that is told, once."""

from __future__ import annotations

from dataclasses import replace

from structlog.testing import capture_logs

from shellwego.control.unit import Unit
from shellwego.core.nodes import NodeHealth
from shellwego.ports.store import eq
from tests.control.rollout_world import FakeNode, World, node_row

ADDRESS = "192.0.2.1"


async def joined(world: World, name: str, number: int, address: str) -> FakeNode:
    node = await world.node(name, address=address)

    def give(unit: Unit) -> None:
        unit.tx.nodes.update(replace(node_row(world, node), subnet=f"10.64.{16 * number}.0/20"))

    await world.control.commit(give)
    return node


def told(world: World, node: FakeNode) -> list[str]:
    kinds = ("node.unreached", "node.reached")
    return [e.type for e in world.peek(lambda tx: tx.events.select(eq("resource", node.node_id))) if e.type in kinds]


async def test_an_address_that_two_nodes_tell_is_told_of_both_until_it_is_mended(world: World) -> None:
    with capture_logs() as lines:
        one = await joined(world, "one", 1, ADDRESS)
        two = await joined(world, "two", 2, ADDRESS)
        await world.clock.advance(10)
        assert "as one does — " in node_row(world, two).unreached
        assert "as two does — " in node_row(world, one).unreached
        two.facts = replace(two.facts, address="192.0.2.2")
        await world.clock.advance(10)
    assert (node_row(world, one).unreached, node_row(world, two).unreached) == ("", "")
    assert told(world, one) == told(world, two) == ["node.unreached", "node.reached"]
    said = sorted((line["node"], line["event"]) for line in lines if line["event"].startswith("node."))
    assert said == [(name, event) for name in ("one", "two") for event in ("node.reached", "node.unreached")]


async def test_of_one_that_is_down_only_that_is_told(world: World) -> None:
    await joined(world, "one", 1, ADDRESS)
    two = await joined(world, "two", 2, "")
    await world.clock.advance(2)
    assert node_row(world, two).unreached
    two.silent = True
    await world.clock.until(lambda: node_row(world, two).health is NodeHealth.DOWN, 10)
    await world.clock.advance(2)
    assert node_row(world, two).unreached == ""
    assert told(world, two) == ["node.unreached"]


async def test_a_platform_that_nobody_joined_is_told_nothing(world: World) -> None:
    one, two = await world.node("one"), await world.node("two")
    await world.clock.advance(5)
    assert [told(world, node) for node in (one, two)] == [[], []]
