"""Standby copies of volumes over the API: kept, told, given up, promoted; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shellwego.control.unit import Unit
from shellwego.control.volumereports import forget
from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.replicas import ObservedReplica
from shellwego.core.volumes import Presence
from shellwego.ports.store import eq
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, Answer, World, keep_volume, leave_copy

PLACE = "/v1/volumes/data/replication"


@pytest.fixture
async def two(world: World) -> Node:
    """Another node; `one` has the volume `data`."""
    await world.commit(lambda unit: keep_volume(unit, world.project.id, "data", world.node.id))
    other = replace(world.node, id="node_two", name="two")
    return await world.commit(lambda unit: unit.tx.nodes.insert(other))


async def put(world: World, path: str, body: Any, **more: Any) -> Answer:
    return await world.call("PUT", path, body, **more)


async def shown(world: World) -> Any:
    return (await world.get("/v1/volumes/data")).json


async def followed(world: World, *, snapshots: tuple[str, ...] = (), **changes: object) -> None:
    """The standby holds a round with these snapshots, and the volume is leased; and what the test says of its node."""

    def work(unit: Unit) -> None:
        (volume,) = unit.tx.volumes.select(eq("name", "data"))
        unit.tx.volumes.update(replace(volume, observed=replace(volume.observed, leased=True)))
        (standby,) = unit.tx.replicas.select(eq("purpose", "standby"))
        held = ObservedReplica(presence=Presence.PRESENT, round=1, snapshot_id=f"{standby.id}_1", snapshots=snapshots)
        unit.tx.replicas.update(replace(standby, observed=held, taken_at=unit.now() - 5))
        home = unit.tx.nodes.get(volume.node_id)
        assert home is not None
        unit.tx.nodes.update(replace(home, **changes))  # type: ignore[arg-type]

    await world.commit(work)


async def test_one_is_kept_told_and_given_up(world: World, two: Node) -> None:
    assert (await shown(world))["standby"] is None
    answer = await put(world, PLACE, {"every_s": 60})
    assert answer.status == 200
    standby = answer.json["standby"]
    assert (standby["node"], standby["state"], standby["every_s"], standby["automatic"]) == ("two", "seeding", 60, True)
    await followed(world)
    told = await shown(world)
    assert (told["standby"]["state"], told["standby"]["round"]) == ("following", 1)
    assert 5 <= told["standby"]["age_s"] < 60
    assert told["copies"] == [told["standby"]]
    assert (await world.get("/v1/volumes")).json["data"][0]["standby"]["node"] == "two"
    assert (await put(world, PLACE, {"every_s": 600, "automatic": False})).json["standby"]["every_s"] == 600
    assert (await world.call("DELETE", PLACE)).status == 202
    again = await world.call("DELETE", PLACE)
    assert (again.status, again.json["code"]) == (409, "no-standby")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "every_s"),
        ({"every_s": 4}, 422, "every_s"),
        ({"every_s": 604_801}, 422, "every_s"),
        ({"every_s": "60"}, 400, "every_s"),
        ({"every_s": 60, "zone": "x"}, 400, "zone"),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_by_its_field(
    world: World, two: Node, body: Any, status: int, field: str
) -> None:
    answer = await put(world, PLACE, body)
    assert (answer.status, [each["field"] for each in answer.json["errors"]]) == (status, [field])
    assert (await shown(world))["copies"] == []


async def test_a_node_is_named_by_those_alone_who_may_see_nodes(world: World, two: Node) -> None:
    for name in ("two", "nowhere"):
        assert (await put(world, PLACE, {"every_s": 60, "node": name}, token=OWNER)).status == 404
    place = f"{PLACE}?project={world.project.id}"
    assert (await put(world, place, {"every_s": 60, "node": "two"}, token=ADMIN)).status == 200
    assert (await put(world, place, {"every_s": 60, "node": "nowhere"}, token=ADMIN)).status == 404


async def test_with_the_volume_goes_its_copy_though_the_node_of_the_volume_is_down(world: World, two: Node) -> None:
    await put(world, PLACE, {"every_s": 60})
    await followed(world, health=NodeHealth.DOWN, leases_over_epoch=1)
    await world.commit(lambda unit: [unit.tx.snapshots.delete(each.id) for each in unit.tx.snapshots.select()])
    assert (await world.call("DELETE", "/v1/volumes/data")).status == 202
    assert [(each["node"], each["state"]) for each in (await shown(world))["copies"]] == [("two", "deleting")]


async def test_while_its_node_lives_or_may_have_it_nothing_is_promoted(world: World, two: Node) -> None:
    await put(world, PLACE, {"every_s": 60})
    await followed(world)
    refused = await world.post("/v1/volumes/data/actions/promote")
    assert (refused.status, refused.json["code"]) == (409, "home-lives")
    await followed(world, health=NodeHealth.DOWN)
    refused = await world.post("/v1/volumes/data/actions/promote")
    assert (refused.status, refused.json["code"]) == (409, "lease-runs")
    assert "may have the volume for about" in (await shown(world))["reason"]


async def test_promoted_it_is_told_what_was_lost_and_what_was_left(world: World, two: Node) -> None:
    await put(world, PLACE, {"every_s": 60})
    await followed(world, health=NodeHealth.DOWN, leases_over_epoch=1)
    answer = await world.post("/v1/volumes/data/actions/promote")
    assert (answer.status, answer.json["node"], answer.json["state"]) == (202, "two", "moving")
    told = answer.json["promotion"]
    assert (told["from_node"], told["to_node"]) == ("one", "two")
    assert told["lost_s"] >= 0
    left = next(each for each in answer.json["copies"] if each["purpose"] == "left")
    assert (left["node"], left["state"]) == ("one", "left")
    dropped = await world.call("DELETE", f"/v1/volumes/data/copies/{left['id']}")
    assert dropped.status == 202
    assert [each["state"] for each in dropped.json["copies"] if each["purpose"] == "left"] == ["deleting"]


async def test_the_snapshots_tell_whether_the_standby_has_them(world: World, two: Node) -> None:
    def another(unit: Unit) -> list[str]:
        (first,) = unit.tx.snapshots.select()
        second = unit.tx.snapshots.insert(replace(first, id=unit.new_id("snap")))
        return [first.id, second.id]

    async def told() -> dict[str, tuple[str, bool | None]]:
        listed = (await world.get("/v1/volumes/data/snapshots")).json["data"]
        return {each["id"]: (each["state"], each["on_standby"]) for each in listed}

    first, second = await world.commit(another)
    assert await told() == {first: ("available", None), second: ("available", None)}
    await put(world, PLACE, {"every_s": 60})
    await followed(world, health=NodeHealth.DOWN, leases_over_epoch=1, snapshots=(first,))
    assert await told() == {first: ("available", True), second: ("available", False)}
    one = (await world.get(f"/v1/volumes/data/snapshots/{first}")).json
    assert one["on_standby"] is True
    assert (await world.post("/v1/volumes/data/actions/promote")).status == 202
    assert {id_: state for id_, (state, _) in (await told()).items()} == {first: "available", second: "error"}
    lost = (await world.get(f"/v1/volumes/data/snapshots/{second}")).json
    assert "it is on one alone" in lost["reason"]


async def test_of_a_standby_that_has_no_node_nothing_is_left_once_its_volume_is_gone(world: World, two: Node) -> None:
    await put(world, PLACE, {"every_s": 60})
    await followed(world, health=NodeHealth.DOWN, leases_over_epoch=1)
    await world.post("/v1/volumes/data/actions/promote")

    def forgotten(unit: Unit) -> list[str]:
        (volume,) = unit.tx.volumes.select(eq("name", "data"))
        forget(unit, volume)
        return [each.node_id for each in unit.tx.replicas.select(eq("volume_id", volume.id))]

    assert await world.commit(forgotten) == [world.node.id]


async def test_others_see_nothing_and_who_may_only_read_changes_nothing(world: World, two: Node) -> None:
    (volume,) = await world.control.read(lambda tx: tx.volumes.select(eq("name", "data")))
    left = await world.commit(lambda unit: leave_copy(unit, volume.id))
    for token, status in ((FOREIGN, 404), (VIEWER, 403)):
        place = f"/v1/volumes/{volume.id}"
        answers = [
            await put(world, f"{place}/replication", {"every_s": 60}, token=token),
            await world.call("DELETE", f"{place}/replication", token=token),
            await world.post(f"{place}/actions/promote", token=token),
            await world.call("DELETE", f"{place}/copies/{left.id}", token=token),
        ]
        assert [answer.status for answer in answers] == [status] * 4
    assert (await world.call("DELETE", "/v1/volumes/data/copies/rep_x")).status == 404
