"""Published ports over the API: opened, listed, closed; and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.control import publishing
from shellwego.control.unit import Unit
from shellwego.core.instances import Phase
from shellwego.core.publishing import PublishedPort, Transport
from shellwego.ports.store import eq
from tests.api.api_world import FOREIGN, VIEWER, World, run_instance

PATH = "/v1/apps/shop/ports"


@pytest.fixture
async def shop(world: World) -> World:
    await world.made("/v1/apps", {"name": "shop"})
    return world


async def test_a_port_is_published_listed_shown_and_closed(shop: World) -> None:
    made = await shop.post(PATH, {"port": 25_432, "target_port": 5432})
    assert (made.status, made.headers["etag"]) == (201, '"1"')
    port = made.json
    assert (port["port"], port["target_port"], port["protocol"], port["process"]) == (25_432, 5432, "tcp", "web")
    assert (await shop.get(PATH)).json["data"] == [port]
    assert (await shop.get(f"{PATH}/{port['id']}")).json == port
    assert (await shop.call("DELETE", f"{PATH}/{port['id']}", headers={"if-match": '"9"'})).status == 412
    assert (await shop.call("DELETE", f"{PATH}/{port['id']}", headers={"if-match": '"1"'})).status == 204
    assert (await shop.get(f"{PATH}/{port['id']}")).code == "port-not-found"
    told = [
        (each.type, each.data["port"])
        for each in await shop.commit(lambda unit: unit.tx.events.select())
        if each.type.startswith("app.port")
    ]
    assert told == [("app.port.published", "25432"), ("app.port.unpublished", "25432")]


async def test_asked_twice_with_one_key_it_is_published_once(shop: World) -> None:
    key = {"idempotency-key": "again"}
    first, second = [await shop.post(PATH, {"port": 20_001}, headers=key) for _ in range(2)]
    assert first.json == second.json
    assert len((await shop.get(PATH)).json["data"]) == 1


async def test_one_port_may_be_open_for_both_protocols(shop: World) -> None:
    for protocol in ("udp", "tcp"):
        await shop.made(PATH, {"port": 20_053, "protocol": protocol})
    assert [each["protocol"] for each in (await shop.get(PATH)).json["data"]] == ["udp", "tcp"]


async def test_a_taken_port_is_told_in_the_same_words_whoever_has_it(shop: World) -> None:
    await shop.made(PATH, {"port": 20_000})
    own = await shop.post(PATH, {"port": 20_000})
    await shop.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    foreign = await shop.post("/v1/apps/theirs/ports", {"port": 20_000}, token=FOREIGN)
    assert (own.status, own.code, own.json["errors"][0]["field"]) == (409, "port-taken", "port")
    assert {**foreign.json, "instance": "", "trace_id": ""} == {**own.json, "instance": "", "trace_id": ""}


async def test_another_tenants_port_looks_absent(shop: World) -> None:
    port = await shop.made(PATH, {"port": 20_000})
    await shop.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    for path in (f"{PATH}/{port['id']}", f"/v1/apps/{port['app_id']}/ports/{port['id']}"):
        assert (await shop.get(path, token=FOREIGN)).status == 404
    assert (await shop.call("DELETE", f"/v1/apps/theirs/ports/{port['id']}", token=FOREIGN)).code == "port-not-found"
    assert (await shop.post(PATH, {"port": 20_001}, token=VIEWER)).status == 403
    assert (await shop.get(PATH, token=VIEWER)).status == 200


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"port": 22}, "port-not-offered", "port"),
        ({"port": 30_000}, "port-not-offered", "port"),
        ({"port": 20_000, "process": "mail"}, "port-refused", "process"),
        ({"port": 0}, "refused", "port"),
        ({"port": 70_000}, "refused", "port"),
        ({"port": "20000"}, "malformed", "port"),
        ({"port": 20_000, "target_port": 0}, "refused", "target_port"),
        ({"port": 20_000, "protocol": "sctp"}, "refused", "protocol"),
        ({"target_port": 80}, "malformed", "port"),
        ({"port": 20_000, "address": "192.0.2.1"}, "malformed", "address"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_field(shop: World, body: object, code: str, field: str) -> None:
    answer = await shop.post(PATH, body)
    assert (answer.status, answer.code, answer.json["errors"][0]["field"]) == (
        400 if code == "malformed" else 422,
        code,
        field,
    )
    assert (await shop.get(PATH)).json["data"] == []


async def test_where_the_operator_offers_none_it_says_so_and_how(shop: World) -> None:
    shop.app.state.context.publish = range(0)
    answer = await shop.post(PATH, {"port": 20_000})
    assert (answer.status, answer.code) == (422, "publishing-off")
    assert "[network]" in answer.json["resolution"]


async def test_an_organization_has_as_many_as_its_plan_says(shop: World) -> None:
    await shop.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    for port in (20_000, 20_001):
        await shop.made("/v1/apps/theirs/ports", {"port": port}, token=FOREIGN)
    refused = await shop.post("/v1/apps/theirs/ports", {"port": 20_002}, token=FOREIGN)
    assert (refused.code, refused.json["errors"][0]["field"]) == ("quota-exceeded", "ports")


async def test_the_ports_of_an_app_go_with_it(shop: World) -> None:
    await shop.made(PATH, {"port": 20_000})
    answer = await shop.call("DELETE", "/v1/apps/shop")
    assert answer.status == 202
    assert (await shop.post(PATH, {"port": 20_001})).code == "app-deleting"


async def test_nodes_are_told_of_ports_and_of_who_answers_by_a_version_that_says_no_more(world: World) -> None:
    await world.deployed()
    nothing = await world.commit(lambda unit: publishing.node_ports(unit.tx))
    port = await world.made(PATH, {"port": 20_000, "protocol": "udp", "target_port": 53})
    empty = await world.commit(lambda unit: publishing.node_ports(unit.tx))
    [told] = empty.ports
    assert (told.transport, told.port, told.endpoints) == (Transport.UDP, 20_000, ())
    instance = await world.commit(lambda unit: run_instance(unit, "shop", "web", Phase.HEALTHY, world.node.id))

    def with_vm(unit: Unit) -> None:
        seen = replace(instance.observed, address="10.64.0.9", vm_id="vm_9")
        unit.tx.instances.update(replace(instance, observed=seen))

    await world.commit(with_vm)
    serving = await world.commit(lambda unit: publishing.node_ports(unit.tx))
    [endpoint] = serving.ports[0].endpoints
    assert (endpoint.vm_id, endpoint.ipv4, endpoint.port, endpoint.taking) == ("vm_9", "10.64.0.9", 53, True)
    assert len({nothing.version, empty.version, serving.version}) == 3
    assert (await world.commit(lambda unit: publishing.node_ports(unit.tx))).version == serving.version
    found: list[PublishedPort] = await world.commit(
        lambda unit: unit.tx.published_ports.select(eq("app_id", port["app_id"]))
    )
    assert [each.created_by for each in found] != [""]
