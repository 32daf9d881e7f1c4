"""Webhooks over the API: made, changed, tested, followed; refused by name; their secret shown once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shellwego.control.deliveries import dispatch
from shellwego.control.loops.outbox import relay
from shellwego.core.webhooks import MAX_WEBHOOKS
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, World, add_user

URL = "https://hooks.example/shellwego?key=canary"
DEVELOPER = "pat_" + "D" * 43


async def _hook(world: World, **fields: object) -> Any:
    return await world.made("/v1/webhooks", {"url": URL, **fields})


async def test_a_webhook_is_made_with_a_secret_that_is_shown_once(world: World) -> None:
    made = await _hook(world, events=["app.*"])
    assert made["secret"].startswith("whsec_")
    assert (made["project_id"], made["active"], made["events"]) == (world.project.id, True, ["app.*"])
    one = await world.get(f"/v1/webhooks/{made['id']}")
    listed = await world.get("/v1/webhooks")
    events = await world.control.read(lambda tx: repr((tx.events.select(), tx.audit.select(), tx.webhooks.select())))
    for text in (one.content.decode(), listed.content.decode(), events):
        assert made["secret"] not in text
    assert one.json == {name: value for name, value in made.items() if name != "secret"}
    assert [hook["id"] for hook in listed.json["data"]] == [made["id"]]
    answer = await world.post("/v1/webhooks", {"url": URL}, headers={"Idempotency-Key": "k"})
    assert (answer.status, answer.code) == (409, "not-repeatable")


async def test_events_do_not_tell_where_a_webhook_goes(world: World) -> None:
    await _hook(world)
    told = await world.control.read(lambda tx: repr((tx.events.select(), tx.audit.select())))
    assert "canary" not in told


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://hooks.example/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
        ({"url": "https://0x7f.1/"}, "url"),
        ({"url": "https://u:p@hooks.example/"}, "url"),
        ({"url": "https://hooks.example:25/"}, "url"),
        ({"url": "x" * 3000}, "url"),
        ({"url": "https://hooks.example/\n"}, "url"),
        ({"url": URL, "events": ["no such"]}, "events"),
        ({"url": URL, "events": ["a"] * 33}, "events"),
        ({"url": URL, "secret": "mine"}, "secret"),
        ({"url": URL, "organization_id": "org_x"}, "organization_id"),
        ({"url": 1}, "url"),
        ({}, "url"),
    ],
)
async def test_a_bad_webhook_is_refused_by_its_field_and_nothing_is_stored(
    world: World, body: object, field: str
) -> None:
    answer = await world.post("/v1/webhooks", body)
    assert answer.status in (400, 422)
    assert next(error["field"].partition(".")[0] for error in answer.json["errors"]) == field
    assert (await world.get("/v1/webhooks")).json["data"] == []


async def test_a_webhook_of_an_organization_is_not_seen_from_its_projects(world: World) -> None:
    organization = world.project.organization_id
    made = await world.made(f"/v1/webhooks?organization={organization}", {"url": URL}, token=ADMIN)
    assert made["project_id"] is None
    assert (await world.get("/v1/webhooks")).json["data"] == []
    assert (await world.get(f"/v1/webhooks/{made['id']}")).status == 404
    assert len((await world.get(f"/v1/webhooks?organization={organization}", token=ADMIN)).json["data"]) == 1


async def test_a_webhook_of_the_whole_platform_is_refused(world: World) -> None:
    answer = await world.post("/v1/webhooks", {"url": URL}, token=ADMIN)
    assert (answer.status, answer.code) == (400, "scope-needed")


async def test_a_developer_handles_webhooks_and_a_viewer_does_not_see_them(world: World) -> None:
    await world.commit(lambda unit: add_user(unit, "developer@x", "developer", world.project.id, DEVELOPER))
    made = await world.made("/v1/webhooks", {"url": URL}, token=DEVELOPER)
    path = f"/v1/webhooks/{made['id']}"
    assert (await world.get(path, token=VIEWER)).status == 404
    assert (await world.get(path, token=FOREIGN)).status == 404
    assert (await world.get(f"/v1/webhooks?project={world.project.id}", token=FOREIGN)).status == 404


async def test_a_webhook_is_changed_under_its_tag(world: World) -> None:
    made = await world.post("/v1/webhooks", {"url": URL})
    path, tag = f"/v1/webhooks/{made.json['id']}", made.headers["etag"]
    changed = await world.call("PATCH", path, {"active": False, "events": ["app.*"]}, headers={"If-Match": tag})
    assert (changed.json["active"], changed.json["events"], changed.json["url"]) == (False, ["app.*"], URL)
    stale = await world.call("PATCH", path, {"active": True}, headers={"If-Match": tag})
    assert (stale.status, stale.code) == (412, "etag-mismatch")
    refused = await world.call("PATCH", path, {"url": "https://10.0.0.1/"})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "url")
    assert (await world.call("DELETE", path, headers={"If-Match": tag})).status == 412
    assert (await world.call("DELETE", path)).status == 204
    assert (await world.get(path)).status == 404


async def test_a_test_and_a_redelivery_can_be_followed(world: World) -> None:
    made = await _hook(world)
    path = f"/v1/webhooks/{made['id']}"
    test = await world.made(f"{path}/actions/test")
    assert (test["type"], test["state"], test["attempts"]) == ("webhook.test", "waiting", [])
    assert (await world.get(f"{path}/deliveries/{test['id']}")).json == test
    waiting = await world.post(f"{path}/deliveries/{test['id']}/actions/redeliver")
    assert (waiting.status, waiting.code) == (409, "delivery-waiting")
    await world.call("PATCH", path, {"active": False})
    failed = (await world.get(f"{path}/deliveries?filter[state]=failed")).json["data"]
    assert [delivery["id"] for delivery in failed] == [test["id"]]
    again = await world.made(f"{path}/deliveries/{test['id']}/actions/redeliver")
    assert (again["event_id"], again["body"]) == (test["event_id"], test["body"])
    assert (await world.get(f"{path}/deliveries?filter[state]=waiting")).json["data"] == [again]


async def test_a_delivery_of_another_webhook_is_absent(world: World) -> None:
    one, other = await _hook(world), await _hook(world)
    test = await world.made(f"/v1/webhooks/{one['id']}/actions/test")
    for path in (f"deliveries/{test['id']}", f"deliveries/dlv_{'0' * 26}"):
        assert (await world.get(f"/v1/webhooks/{other['id']}/{path}")).status == 404
        assert (await world.post(f"/v1/webhooks/{other['id']}/{path}/actions/redeliver")).status == 404


async def test_a_delivery_carries_the_event_as_the_api_shows_it(world: World) -> None:
    made = await _hook(world, events=["app.created"])
    await relay(world.control)
    await world.made("/v1/apps", {"name": "shop"})
    await relay(world.control)
    await world.commit(dispatch)
    [delivery] = (await world.get(f"/v1/webhooks/{made['id']}/deliveries")).json["data"]
    [event] = (await world.get("/v1/events?filter[type]=app.created")).json["data"]

    assert json.loads(delivery["body"]) == event


async def test_a_scope_has_at_most_so_many_webhooks(world: World) -> None:
    for _ in range(MAX_WEBHOOKS):
        await _hook(world)
    answer = await world.post("/v1/webhooks", {"url": URL}, token=OWNER)
    assert (answer.status, answer.code) == (429, "webhook-limit")
