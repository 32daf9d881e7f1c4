"""Which instances would better run elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase, Sleep
from shellwego.core.nodes import Node, NodeHealth, Scheduling
from shellwego.core.placement import NodeUsage, PlacementRequest
from shellwego.core.rebalance import GAP, MOST_MOVES, Move, RebalanceFacts, may_move, plan_rebalance
from tests.core.test_core_drain import GIB, SERVING, node


def request(instance: Instance) -> PlacementRequest:
    return PlacementRequest(
        app_id=instance.app_id,
        process=instance.process,
        cpu_milli=instance.cpu_milli,
        memory_bytes=instance.memory_bytes,
        disk_bytes=instance.disk_bytes,
    )


def facts(nodes: list[Node], *instances: Instance) -> RebalanceFacts:
    usage: dict[str, NodeUsage] = {}
    for instance in instances:
        usage[instance.node_id] = usage.get(instance.node_id, NodeUsage()).plus(request(instance))
    requests = {instance.id: request(instance) for instance in instances}
    return RebalanceFacts(nodes=tuple(nodes), usage=usage, instances=instances, requests=requests)


def apps(count: int, at: str, memory: int = 1) -> list[Instance]:
    """So many apps with an instance each on a node."""
    return [
        replace(SERVING, id=f"ins_{at}{n}", app_id=f"app_{at}{n}", node_id=f"node_{at}", memory_bytes=memory * GIB)
        for n in range(count)
    ]


def shares(found: RebalanceFacts, moves: tuple[Move, ...]) -> list[float]:
    """Of their memory that the nodes have promised after the moves."""
    usage = dict(found.usage)
    for move in moves:
        wish = found.requests[move.instance.id]
        usage[move.from_node] = usage[move.from_node].minus(wish)
        usage[move.to_node] = usage.get(move.to_node, NodeUsage()).plus(wish)
    return [usage.get(n.id, NodeUsage()).memory_bytes / n.facts.memory_bytes for n in found.nodes]


def test_a_node_that_joined_empty_gets_its_part() -> None:
    found = facts([node("a"), node("b")], *apps(6, "a"))
    moves = plan_rebalance(found)
    assert [(move.from_node, move.to_node) for move in moves] == [("node_a", "node_b")] * 3
    assert moves[0].reason == "a has promised 75% of its memory, b has promised 0% of its memory"
    assert shares(found, moves) == [3 / 8, 3 / 8]


def test_nothing_is_moved_for_little() -> None:
    assert plan_rebalance(facts([node("a"), node("b")], *apps(4, "a"), *apps(3, "b"))) == ()


def test_one_app_on_one_node_of_two_stays() -> None:
    assert plan_rebalance(facts([node("a"), node("b")], *apps(1, "a", memory=8))) == ()


def test_a_spread_is_never_made_worse() -> None:
    """Each of two nodes has one of the app, and one is much the emptier."""
    app = [replace(SERVING, id=f"ins_{at}", slot=n, node_id=f"node_{at}") for n, at in enumerate("ab")]
    found = facts([node("a"), node("b", memory=80)], *app)
    assert plan_rebalance(found) == ()


@pytest.mark.parametrize(
    "fields", [{"scheduling": Scheduling.CORDONED}, {"health": NodeHealth.SUSPECT}, {"flapping_since": 1.0}]
)
def test_nothing_is_moved_to_a_node_that_gets_nothing_new(fields: dict[str, object]) -> None:
    assert plan_rebalance(facts([node("a"), node("b", **fields)], *apps(6, "a"))) == ()  # type: ignore[arg-type]


def test_a_plan_is_bounded() -> None:
    found = facts([node("a", memory=4000), node("b", memory=4000)], *apps(900, "a"))
    assert len(plan_rebalance(found)) == MOST_MOVES


@pytest.mark.parametrize(
    "fields",
    [
        {"owner": OwnerKind.RUN},
        {"phase": Phase.ASLEEP},
        {"phase": Phase.UNHEALTHY},
        {"desired": Desired.DRAIN},
        {"sleep": Sleep.DOZING},
        {"eviction": Eviction.QUEUED},
        {"eviction": Eviction.GENTLE},
    ],
)
def test_what_sleeps_is_sick_or_leaves_is_left_alone(fields: dict[str, object]) -> None:
    assert may_move(SERVING)
    assert not may_move(replace(SERVING, **fields))  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(0, 5)), max_size=40), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_every_plan_makes_the_nodes_more_alike_and_leaves_nothing_to_do(
    placed: list[tuple[int, int, int]], count: int
) -> None:
    names = [str(n) for n in range(count)]
    instances = [
        replace(
            SERVING,
            id=f"ins_{n:02d}",
            app_id=f"app_{app}",
            slot=n,
            node_id=f"node_{at % count}",
            memory_bytes=memory * GIB // 2,
        )
        for n, (at, memory, app) in enumerate(placed)
    ]
    found = facts([node(name, memory=64) for name in names], *instances)
    moves = plan_rebalance(found)
    assert moves == plan_rebalance(found)
    before, after = shares(found, ()), shares(found, moves)
    assert max(after) <= max(before)
    assert sum(s * s for s in after) <= sum(s * s for s in before)
    where = {i.id: i.node_id for i in instances} | {move.instance.id: move.to_node for move in moves}
    assert plan_rebalance(facts(list(found.nodes), *(replace(i, node_id=where[i.id]) for i in instances))) == ()
    for app in {i.app_id for i in instances}:
        assert _most(instances, where, app) <= _most(instances, {i.id: i.node_id for i in instances}, app)
    assert not moves or max(before) - min(before) >= GAP


def _most(instances: list[Instance], where: dict[str, str], app: str) -> int:
    """The most of an app that are on one node."""
    at = [where[i.id] for i in instances if i.app_id == app]
    return max(at.count(each) for each in at)
