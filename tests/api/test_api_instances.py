"""Instances over the API: shown, named, run once, suspended and resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shellwego.core.instances import Phase
from shellwego.core.nodes import Backend
from tests.api.api_world import World


async def test_instances_are_shown_with_their_release(world: World) -> None:
    await world.deployed()
    instance = await world.running()
    listed = (await world.get("/v1/apps/shop/instances?filter[phase]=healthy")).json["data"]
    assert [(row["id"], row["release"], row["phase"]) for row in listed] == [(instance.id, 1, "healthy")]
    assert (await world.get("/v1/vms")).json["data"] == listed
    assert (await world.get(f"/v1/vms/{instance.id}")).json == listed[0]
    assert (await world.get("/v1/apps/shop/instances?filter[owner]=run")).json["data"] == []


async def test_an_instance_is_named_by_a_part_of_its_id_or_by_its_place(world: World) -> None:
    await world.deployed()
    ended = await world.running(phase=Phase.STOPPED)
    one = await world.running()
    for ref in (one.id, one.id[-6:], one.id.removeprefix("ins_"), "web.0"):
        answer = await world.get(f"/v1/apps/shop/instances/{ref}")
        assert (answer.status, answer.json["id"]) == (200, one.id), ref
    assert (await world.get(f"/v1/apps/shop/instances/{ended.id[-6:]}")).json["id"] == ended.id
    assert (await world.get(f"/v1/apps/shop/instances/{one.id[:8]}")).code == "ambiguous-instance"
    for ref in (one.id[-3:], "web.1", "nope.0", "web.x", "zzzzzz"):
        assert (await world.get(f"/v1/apps/shop/instances/{ref}")).status == 404, ref


async def test_of_an_instance_that_ended_nothing_is_wanted_any_more(world: World) -> None:
    await world.deployed()
    serves = await world.running()
    failed = await world.running(phase=Phase.FAILED)
    shown = {row["id"]: row["desired"] for row in (await world.get("/v1/vms")).json["data"]}
    assert shown == {serves.id: "serve", failed.id: "stop"}


async def test_a_run_is_an_instance_of_its_own(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    assert (await world.post("/v1/apps/shop/runs", {"command": ["true"]})).code == "never-deployed"
    world.images.publish("registry.example/hello:v1")
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    await world.running()
    run = await world.made("/v1/apps/shop/runs", {"command": ["python", "-m", "migrate"], "memory": "512m"})
    assert (run["owner"], run["phase"], run["command"]) == ("run", "pending", ["python", "-m", "migrate"])
    assert run["memory_bytes"] == 512 << 20
    assert (await world.get("/v1/apps/shop")).json["running"] == {"web": 1}
    stopped = await world.call("DELETE", f"/v1/apps/shop/runs/{run['id']}")
    assert stopped.json["desired"] == "stop"
    web = (await world.get("/v1/apps/shop/instances?filter[owner]=app")).json["data"][0]
    assert (await world.call("DELETE", f"/v1/apps/shop/runs/{web['id']}")).status == 404


@pytest.mark.parametrize(
    "body",
    [
        {"command": []},
        {"command": [""]},
        {"command": ["a\u0000"]},
        {"command": ["true"], "process": "nope"},
        {"command": ["true"], "memory": "900gb"},
        {"command": ["true"], "memory": "1k"},
        {"command": ["true"], "memory": "lots"},
    ],
)
async def test_a_run_that_cannot_be_is_refused(world: World, body: Any) -> None:
    await world.deployed()
    await world.running()
    assert (await world.post("/v1/apps/shop/runs", body)).status == 422


async def test_an_instance_is_suspended_and_resumed_by_its_id(world: World) -> None:
    await world.deployed()
    instance = await world.running()
    shown = await world.made(f"/v1/vms/{instance.id}/actions/suspend")
    assert (shown["phase"], shown["sleep"]) == ("healthy", "dozing")
    assert await world.made(f"/v1/vms/{instance.id}/actions/suspend") == shown, "it is asked for already"
    assert (await world.made(f"/v1/vms/{instance.id}/actions/resume"))["sleep"] == "awake"
    starting = await world.running(phase=Phase.STARTING)
    refused = await world.post(f"/v1/vms/{starting.id}/actions/suspend")
    assert (refused.status, refused.code) == (409, "not-healthy")
    ended = await world.running(phase=Phase.STOPPED)
    assert (await world.post(f"/v1/vms/{ended.id}/actions/resume")).code == "not-asleep"


async def test_a_backend_that_cannot_suspend_is_told_before_anything_is_done(world: World) -> None:
    await world.deployed()
    instance = await world.running()
    facts = replace(world.node.facts, backends=(Backend(name="kvm", status="ready"),))
    await world.commit(lambda unit: unit.tx.nodes.update(replace(world.node, facts=facts)))
    refused = await world.post(f"/v1/vms/{instance.id}/actions/suspend")
    assert (refused.status, refused.code) == (409, "cannot-suspend")
    assert (await world.get(f"/v1/vms/{instance.id}")).json["sleep"] == "awake"
