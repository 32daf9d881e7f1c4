"""Where instances may go, as a client says and sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.nodes import MAX_LABELS
from tests.api.api_world import ADMIN, FOREIGN, World


async def test_where_instances_may_go_is_stored_shown_and_refused_where_no_node_is(world: World) -> None:
    world.images.publish("registry.example/hello:v1")
    placed = replace(world.node, region="eu", labels={"disk": "ssd", "taint/gpu": "yes"})
    await world.commit(lambda unit: unit.tx.nodes.update(placed))
    rules = {"region": "eu", "require": {"disk": "ssd"}, "tolerate": {"gpu": "yes"}, "spread": "node"}
    made = await world.made("/v1/apps", {"name": "shop", "config": {"placement": rules}})
    assert made["config"]["placement"] == {**rules, "zone": "", "priority": 50}
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


@pytest.mark.parametrize("name", ["require", "tolerate"])
async def test_an_app_may_name_as_many_labels_as_a_node_may_have(world: World, name: str) -> None:
    labels = {f"label-{n}": "x" for n in range(MAX_LABELS)}
    made = await world.made("/v1/apps", {"name": "shop", "config": {"placement": {name: labels}}})
    assert made["config"]["placement"][name] == labels
    more = {"placement": {name: {**labels, "more": "x"}}}
    refused = await world.call("PATCH", "/v1/apps/shop", {"config": more})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, f"config.placement.{name}")


async def test_how_much_an_app_may_matter_is_the_operators_to_say(world: World) -> None:
    async def ask(priority: int, name: str = "shop") -> tuple[int, list[str]]:
        body = {"name": name, "config": {"placement": {"priority": priority}}}
        answer = await world.post("/v1/apps", body, token=FOREIGN)
        return answer.status, [fault["field"] for fault in answer.json.get("errors", [])]

    assert await ask(101) == (422, ["config.placement.priority"])
    assert await ask(51) == (429, ["placement.priority"])
    path = "/v1/organizations/other/quotas"
    assert (await world.call("PUT", path, {"limits": {"priority": 80}}, token=FOREIGN)).status == 403
    beyond = await world.call("PUT", path, {"limits": {"priority": 101}}, token=ADMIN)
    assert (beyond.status, beyond.json["errors"][0]["field"]) == (422, "limits.priority")
    allowed = await world.call("PUT", path, {"limits": {"priority": 80}}, token=ADMIN)
    assert allowed.json["set"] == ["priority"]
    assert await ask(80) == (201, [])
    found = next(each for each in (await world.get(path, token=FOREIGN)).json["data"] if each["name"] == "priority")
    assert (found["limit"], found["used"], found["unit"]) == (80, 80, "")
    await world.call("PUT", path, {"limits": {"priority": 10}}, token=ADMIN)
    again = {"config": {"placement": {"priority": 51}}}
    for method, where in (("PATCH", ""), ("POST", "/plan"), ("POST", "/deployments")):
        refused = await world.call(method, f"/v1/apps/shop{where}", again, token=FOREIGN)
        assert (refused.status, refused.json["errors"][0]["field"]) == (429, "placement.priority"), where
    assert (await world.call("PATCH", "/v1/apps/shop", {"config": {"drain_timeout": 5}}, token=FOREIGN)).status == 200
    assert await ask(50, "other") == (201, []), "what nobody raised is not refused"


async def test_a_rollback_to_a_priority_that_was_allowed_once_is_no_matter_of_the_limit(world: World) -> None:
    world.images.publish("registry.example/hello:v1")
    path = f"/v1/organizations/{world.project.organization_id}/quotas"
    await world.call("PUT", path, {"limits": {"priority": 80}}, token=ADMIN)
    await world.made("/v1/apps", {"name": "shop", "config": {"placement": {"priority": 80}}})
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    await world.running()
    await world.made("/v1/apps/shop/deployments", {"config": {"placement": {"priority": 50}}})
    await world.call("PUT", path, {"limits": {"priority": 30}}, token=ADMIN)
    back = await world.post("/v1/apps/shop/actions/rollback", {"release": "v1"})
    assert back.status == 202
