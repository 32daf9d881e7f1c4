"""Nodes over the API: what an operator may say of them, and what they tell."""

from __future__ import annotations

import pytest

from tests.api.api_world import ADMIN, World


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
