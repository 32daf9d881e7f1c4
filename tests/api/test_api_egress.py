"""What an app may open connections to, as a client says and sees it."""

from __future__ import annotations

from typing import Any

import pytest

from shellwego.control.nodes import assignments
from shellwego.core.destinations import MAX_DESTINATIONS
from tests.api.api_world import FOREIGN, VIEWER, World

TLS = {"network": "203.0.113.0/24", "protocol": "tcp", "ports": "443"}


async def change(world: World, body: Any, **options: Any) -> Any:
    answer = await world.call("PATCH", "/v1/apps/shop/egress", body, **options)
    assert answer.status == 200, answer.content
    return answer.json


async def test_a_new_app_is_open_and_its_list_is_kept_in_either_mode(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    assert (await world.get("/v1/apps/shop/egress")).json == {"mode": "open", "destinations": []}
    noted = await change(world, {"allow": [TLS, {"network": "198.51.100.7"}]})
    single = {"network": "198.51.100.7/32", "protocol": "any", "ports": ""}
    assert noted == {"mode": "open", "destinations": [TLS, single]}
    assert await change(world, {"mode": "listed"}) == {**noted, "mode": "listed"}
    assert await change(world, {"deny": [{"network": "198.51.100.7"}]}) == {"mode": "listed", "destinations": [TLS]}
    assert await change(world, {"mode": "open"}) == {"mode": "open", "destinations": [TLS]}
    assert (await world.get("/v1/apps/shop/egress")).json == {"mode": "open", "destinations": [TLS]}


async def test_a_change_reaches_what_runs_without_a_release(world: World) -> None:
    await world.deployed()
    instance = await world.running()
    await change(world, {"mode": "listed", "allow": [TLS]})
    (item,) = (await world.control.read(lambda tx: assignments(tx, instance.node_id))).items
    assert [str(each) for each in item.workload.egress or ()] == ["203.0.113.0/24:443/tcp"]
    assert len((await world.get("/v1/apps/shop/releases")).json["data"]) == 1
    await change(world, {"mode": "open"})
    (item,) = (await world.control.read(lambda tx: assignments(tx, instance.node_id))).items
    assert item.workload.egress is None


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"allow": [TLS, {"network": "example.org"}]}, "allow.1.network", "bad-network"),
        ({"allow": [{"network": "2001:db8::/32"}]}, "allow.0.network", "no-ipv6"),
        ({"allow": [{"network": "169.254.169.254"}]}, "allow.0.network", "closed-to-all"),
        ({"allow": [{**TLS, "ports": "99999"}]}, "allow.0.ports", "out-of-range"),
        ({"allow": [TLS], "deny": [{"network": "192.0.2.0/24"}]}, "deny.0", "not-listed"),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused_whole(world: World, body: Any, field: str, code: str) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    answer = await world.call("PATCH", "/v1/apps/shop/egress", body)
    assert (answer.status, answer.code) == (422, "egress-refused")
    assert [(each["field"], each["code"]) for each in answer.json["errors"]] == [(field, code)]
    assert (await world.get("/v1/apps/shop/egress")).json["destinations"] == []


async def test_a_list_has_an_end_and_its_words_are_few(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    full = [{"network": f"203.0.113.{n}"} for n in range(MAX_DESTINATIONS)]
    await change(world, {"allow": full})
    answer = await world.call("PATCH", "/v1/apps/shop/egress", {"allow": [TLS]})
    assert answer.json["errors"][0]["code"] == "too-many"
    for wrong in ({"mode": "ajar"}, {"allow": [{**TLS, "protocol": "sctp"}]}, {"allow": [*full, TLS]}, {"open": True}):
        assert (await world.call("PATCH", "/v1/apps/shop/egress", wrong)).status in (400, 422)


async def test_who_may_read_sees_it_and_a_foreign_app_looks_absent(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    assert (await world.get("/v1/apps/shop/egress", token=VIEWER)).status == 200
    assert (await world.call("PATCH", "/v1/apps/shop/egress", {"mode": "listed"}, token=VIEWER)).status == 403
    assert (await world.get("/v1/apps/shop/egress", token=FOREIGN)).status == 404
    assert (await world.get("/v1/apps/shop/egress")).json["mode"] == "open"


async def test_a_change_is_guarded_told_and_on_record(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    seen = await world.get("/v1/apps/shop/egress")
    await change(world, {"mode": "listed", "allow": [TLS]}, headers={"If-Match": seen.headers["etag"]})
    late = {"If-Match": seen.headers["etag"]}
    assert (await world.call("PATCH", "/v1/apps/shop/egress", {"mode": "open"}, headers=late)).status == 412
    events = await world.control.read(lambda tx: tx.events.select())
    (told,) = [event for event in events if event.type == "app.egress_changed"]
    assert (told.data["mode"], told.data["destinations"]) == ("listed", "1")
    records = await world.control.read(lambda tx: tx.audit.select())
    assert "network:write" in {record.action for record in records if record.allowed}


async def test_an_app_that_is_being_destroyed_stays_as_it_is(world: World) -> None:
    await world.deployed()
    await world.running()
    await world.call("DELETE", "/v1/apps/shop")
    assert (await world.call("PATCH", "/v1/apps/shop/egress", {"mode": "listed"})).code == "app-deleting"
