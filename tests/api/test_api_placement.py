"""Where instances may go, as a client says and sees it."""

from __future__ import annotations

from dataclasses import replace

from tests.api.api_world import World


async def test_where_instances_may_go_is_stored_shown_and_refused_where_no_node_is(world: World) -> None:
    world.images.publish("registry.example/hello:v1")
    placed = replace(world.node, region="eu", labels={"disk": "ssd", "taint/gpu": "yes"})
    await world.commit(lambda unit: unit.tx.nodes.update(placed))
    rules = {"region": "eu", "require": {"disk": "ssd"}, "tolerate": {"gpu": "yes"}, "spread": "node"}
    made = await world.made("/v1/apps", {"name": "shop", "config": {"placement": rules}})
    assert made["config"]["placement"] == {**rules, "zone": ""}
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    refused = await world.post("/v1/apps/shop/deployments", {"config": {"placement": {"region": "us"}}})
    assert (refused.status, refused.code) == (422, "cannot-be-placed")
    assert refused.json["errors"][0]["field"] == "placement.region"
    assert (await world.get("/v1/apps/shop")).json["config"]["placement"]["region"] == "eu"
    anywhere = {"config": {"placement": {"region": "", "require": {}, "spread": "zone"}}}
    changes = (await world.made("/v1/apps/shop/plan", anywhere))["changes"]
    assert [change["field"] for change in changes] == ["placement.region", "placement.require.disk", "placement.spread"]
    intolerant = await world.post("/v1/apps/shop/plan", {"config": {"placement": {"tolerate": {}}}})
    assert (intolerant.status, intolerant.json["errors"][0]["field"]) == (422, "placement.tolerate")
    wrong = await world.post("/v1/apps/shop/deployments", {"config": {"placement": {"spread": "rack"}}})
    assert (wrong.status, wrong.json["errors"][0]["field"]) == (422, "config.placement.spread")
