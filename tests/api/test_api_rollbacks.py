"""Rollbacks over the API, and how an app differs from what it last ran."""

from __future__ import annotations

from shellwego.control.unit import Unit
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import World


async def _succeed(world: World) -> None:
    """As if the last deployment had been rolled out in full."""
    await world.running()
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(1)


async def test_a_rollback_makes_a_new_release_with_the_content_before(world: World) -> None:
    await world.deployed()
    await _succeed(world)
    await world.made("/v1/apps/shop/deployments", {"port": 9000})
    await _succeed(world)
    back = await world.made("/v1/apps/shop/actions/rollback")
    assert back["release"] == 3
    first, third = [(await world.get(f"/v1/apps/shop/releases/v{n}")).json for n in (1, 3)]
    assert first["content_hash"] == third["content_hash"]
    assert third["description"] == "rollback to v1"
    assert (await world.get("/v1/apps/shop")).json["config"]["services"][0]["port"] == 8080
    diff = (await world.get("/v1/apps/shop/releases/v2/diff?against=1")).json
    assert [change["field"] for change in diff["changes"]] == ["services.web.port"]


async def test_after_a_release_that_failed_a_rollback_takes_its_change_out_of_the_config(world: World) -> None:
    await world.deployed()
    await _succeed(world)
    await world.made("/v1/apps/shop/deployments", {"port": 7000})
    await _succeed(world)
    assert not (await world.get("/v1/apps/shop")).json["config_differs"]
    broken = await world.made("/v1/apps/shop/deployments", {"port": 9000})
    await world.post(f"/v1/apps/shop/deployments/{broken['id']}/actions/cancel")
    app = (await world.get("/v1/apps/shop")).json
    assert (app["release"], app["config_differs"]) == (2, True)
    assert app["config"]["services"][0]["port"] == 9000

    back = await world.made("/v1/apps/shop/actions/rollback")
    assert (await world.get(f"/v1/apps/shop/releases/{back['release']}")).json["description"] == "rollback to v2"
    app = (await world.get("/v1/apps/shop")).json
    assert (app["config_differs"], app["config"]["services"][0]["port"]) == (False, 7000)


async def test_changes_that_wait_for_a_deployment_are_told(world: World) -> None:
    await world.deployed()
    await _succeed(world)
    await world.call("PATCH", "/v1/apps/shop/env", {"env": {"A": "1"}, "stage": True})
    assert (await world.get("/v1/apps/shop")).json["config_differs"]
    await world.call("PATCH", "/v1/apps/shop/env", {"env": {"A": None}, "stage": True})
    assert not (await world.get("/v1/apps/shop")).json["config_differs"]


async def test_a_name_that_moved_to_an_image_that_failed_is_a_difference(world: World) -> None:
    await world.deployed()
    await _succeed(world)
    world.images.publish("registry.example/hello:v1", size_bytes=2000)
    broken = await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    await world.post(f"/v1/apps/shop/deployments/{broken['id']}/actions/cancel")
    assert (await world.get("/v1/apps/shop")).json["config_differs"]


async def test_a_rollback_needs_somewhere_to_go(world: World) -> None:
    await world.deployed()
    await _succeed(world)
    assert (await world.post("/v1/apps/shop/actions/rollback")).code == "no-earlier-release"
    for release in ("v9", "9", "-1", "v", "x" * 30, f"rel_{'0' * 26}", "٣"):
        answer = await world.post("/v1/apps/shop/actions/rollback", {"release": release})
        assert (answer.status, answer.code) == (404, "release-not-found")


def forget_instances(unit: Unit) -> None:
    for instance in unit.tx.instances.select():
        unit.tx.instances.delete(instance.id)


async def test_a_rollback_to_a_deleted_image_is_refused(world: World) -> None:
    await world.deployed()
    await _succeed(world)
    world.images.publish("registry.example/other:v1")
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/other:v1"})
    await _succeed(world)
    await world.commit(forget_instances)
    images = (await world.get("/v1/images?filter[q]=hello")).json["data"]
    assert (await world.call("DELETE", f"/v1/images/{images[0]['id']}")).status == 204
    assert (await world.post("/v1/apps/shop/actions/rollback", {"release": "v1"})).code == "image-deleted"
