"""Nodes over the API: what an operator may say of them, and what they tell."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from shellwego.control.unit import Unit
from shellwego.core.deployments import DeploymentState
from shellwego.core.instances import Phase
from shellwego.core.nodes import Underlay
from shellwego.ports.store import eq
from tests.api.api_world import ADMIN, World, run_instance


async def test_a_drain_tells_what_is_left_and_what_that_waits_for(world: World) -> None:
    await world.deployed()
    instance = await world.running()
    path = f"/v1/nodes/{world.node.name}"
    answer = await world.post(f"{path}/actions/drain", {"deadline": 600, "parallel": 3}, token=ADMIN)
    assert answer.status == 202
    shown = (await world.get(path, token=ADMIN)).json
    assert (shown["scheduling"], shown["drain"]["instances_left"]) == ("draining", 1)
    assert (shown["drain"]["parallel"], shown["drain"]["force"], shown["drain"]["overdue"]) == (3, False, False)
    (left,) = shown["drain"]["waiting"]
    assert (left["instance_id"], left["app"], left["reason"]) == (
        instance.id,
        "shop",
        "no node fits: 1 is draining",
    )
    (listed,) = (await world.get("/v1/nodes", token=ADMIN)).json["data"]
    assert (listed["drain"]["instances_left"], listed["drain"]["waiting"]) == (1, [])
    opened = (await world.post(f"{path}/actions/uncordon", token=ADMIN)).json
    assert (opened["scheduling"], opened["drain"]) == ("open", None)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"deadline": -1}, 422, "deadline"),
        ({"deadline": 1e9}, 422, "deadline"),
        ({"parallel": 0}, 422, "parallel"),
        ({"force": True}, 422, "force"),
        ({"force": "yes"}, 400, "force"),
        ({"until": 5}, 400, "until"),
    ],
)
async def test_a_drain_that_makes_no_sense_is_refused_by_field(
    world: World, body: dict[str, object], status: int, field: str
) -> None:
    refused = await world.post(f"/v1/nodes/{world.node.name}/actions/drain", body, token=ADMIN)
    assert refused.status == status
    assert [error["field"] for error in refused.json["errors"]] == [field]
    assert (await world.get(f"/v1/nodes/{world.node.name}", token=ADMIN)).json["scheduling"] == "open"


async def test_a_node_tells_why_no_other_reaches_it_and_by_which_road_it_hears_hints(world: World) -> None:
    path = f"/v1/nodes/{world.node.name}"
    before = (await world.get(path, token=ADMIN)).json

    def note(unit: Unit) -> None:
        (node,) = unit.tx.nodes.select(eq("name", world.node.name))
        facts = replace(node.facts, hints="link")
        unit.tx.nodes.update(replace(node, facts=facts, unreached="no other node reaches its VMs: x — do y"))

    await world.control.commit(note)
    shown = (await world.get(path, token=ADMIN)).json
    assert shown["warnings"] == [*before["warnings"], "no other node reaches its VMs: x — do y"]
    assert (before["hints"], shown["hints"]) == ("", "link")


async def test_labels_and_place_change_for_whom_saw_the_node_as_it_is(world: World) -> None:
    path = f"/v1/nodes/{world.node.name}"
    seen = await world.get(path, token=ADMIN)
    body = {"labels": {"disk": "ssd"}, "region": "eu", "zone": "a"}
    changed = await world.call("PATCH", path, body, token=ADMIN, headers={"If-Match": seen.headers["etag"]})
    assert changed.status == 200
    assert (changed.json["labels"], changed.json["region"], changed.json["zone"]) == ({"disk": "ssd"}, "eu", "a")
    stale = await world.call("PATCH", path, {"zone": "b"}, token=ADMIN, headers={"If-Match": seen.headers["etag"]})
    assert stale.status == 412
    gone = await world.call("PATCH", path, {"labels": {"disk": None}}, token=ADMIN)
    assert gone.json["labels"] == {}
    refused = await world.call("PATCH", path, {"labels": {"Disk!": "x"}, "zone": "B"}, token=ADMIN)
    assert [error["field"] for error in refused.json["errors"]] == ["labels.Disk!", "zone"]


async def test_a_node_is_removed_once_it_is_drained_or_by_force(world: World) -> None:
    path = f"/v1/nodes/{world.node.name}"
    refused = await world.call("DELETE", path, token=ADMIN)
    assert (refused.status, refused.code) == (409, "node-in-use")
    assert (await world.call("DELETE", path, token=ADMIN, query={"force": "true"})).status == 204
    assert (await world.get(path, token=ADMIN)).status == 404


async def test_what_would_better_run_on_an_emptier_node_is_told_queued_and_taken_back(world: World) -> None:
    for app in ("shop", "blog"):
        await world.deployed(app)
        await world.commit(partial(run_large, app=app, node_id=world.node.id))
    empty = replace(world.node, id=f"node_{'0' * 26}", name="two", version=1)
    await world.commit(lambda unit: unit.tx.nodes.insert(empty))
    planned = (await world.get("/v1/rebalance", token=ADMIN)).json
    (move,) = planned["moves"]
    assert (move["from_node"], move["to_node"], move["process"]) == (world.node.name, "two", "web")
    assert move["app"] in ("shop", "blog")
    begun = await world.post("/v1/rebalance", token=ADMIN)
    assert (begun.status, begun.json["moves"], begun.json["queued"]) == (202, planned["moves"], 1)
    again = (await world.post("/v1/rebalance", token=ADMIN)).json
    assert (again["moves"], again["queued"]) == ([], 1)
    assert (await world.call("DELETE", "/v1/rebalance", token=ADMIN)).status == 204
    assert (await world.get("/v1/rebalance", token=ADMIN)).json["queued"] == 0


def run_large(unit: Unit, app: str, node_id: str) -> None:
    """A large instance of an app whose deployment is over."""
    instance = run_instance(unit, app, "web", Phase.HEALTHY, node_id)
    unit.tx.instances.update(replace(instance, memory_bytes=1 << 30))
    for deployment in unit.tx.deployments.select(eq("app_id", instance.app_id)):
        unit.tx.deployments.update(replace(deployment, state=DeploymentState.SUCCEEDED))


async def test_keys_of_nodes_are_replaced_on_an_administrators_word_once_at_a_time(world: World) -> None:
    path = "/v1/nodes/actions/rotate-keys"
    refused = await world.post(path, token=ADMIN)
    assert (refused.status, refused.code) == (409, "nothing-encrypted")
    keys = ("A" * 43 + "=", "B" * 42 + "A=")
    facts = replace(world.node.facts, underlay=Underlay.WIREGUARD, tunnel_keys=keys)
    sealed = replace(world.node, id=f"node_{'0' * 26}", name="sealed", facts=facts, tunnel_keys_since=(5.0,), version=1)
    await world.commit(lambda unit: unit.tx.nodes.insert(sealed))
    begun = await world.post(path, token=ADMIN)
    assert (begun.status, begun.json["nodes"]) == (202, 1)
    assert (await world.post(path, token=ADMIN)).json == begun.json
    shown = (await world.get("/v1/nodes/sealed", token=ADMIN)).json["tunnel_keys"]
    assert shown == [
        {"public_key": keys[0], "since": "1970-01-01T00:00:05Z"},
        {"public_key": keys[1], "since": None},
    ]
