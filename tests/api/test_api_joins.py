"""How operators let hosts join: tokens, keys and authorities over the API. What a join itself does: tests/control."""

from __future__ import annotations

from typing import Any

import pytest

from shellwego.control.certificates import new_key
from shellwego.control.joins import Joins
from shellwego.control.servers import Servers
from shellwego.core.joins import split_token
from tests.api.api_world import ADMIN, World
from tests.control.join_world import join_request

TOKENS, KEYS, AUTHORITIES = "/v1/nodes/join-tokens", "/v1/nodes/keys", "/v1/nodes/authorities"


@pytest.fixture
def world(world: World) -> World:
    world.token = ADMIN
    return world


async def joined(world: World, **wish: Any) -> str:
    """A host joins by a token of the API; its id."""
    made = await world.made(TOKENS, wish)
    parts = split_token(made["token"])
    assert parts is not None
    joins = Joins(world.control, world.app.state.context.authorities, Servers(world.control, "one", ()))
    return (await joins.join(join_request(parts[0], new_key()))).id


async def test_a_token_is_told_once_with_where_to_bring_it(world: World) -> None:
    made = await world.made(TOKENS, {"region": "north", "labels": {"disk": "ssd"}, "expires_in": 60})
    assert (made["state"], made["region"], made["url"]) == ("open", "north", "https://one.example:7081")
    parts = split_token(made["token"])
    assert parts is not None
    (authority,) = (await world.get(AUTHORITIES)).json["data"]
    assert parts[1] == authority["fingerprint"]
    listed = await world.get(TOKENS)
    assert [each["id"] for each in listed.json["data"]] == [made["id"]]
    kept = await world.control.read(lambda tx: repr((tx.join_tokens.select(), tx.events.select(), tx.audit.select())))
    for secret in (made["token"], parts[0]):
        assert secret not in listed.content.decode() + kept


async def test_a_token_says_who_came_by_it_and_is_then_not_revoked_but_the_key_is(world: World) -> None:
    member = await joined(world)
    (token,) = (await world.get(TOKENS)).json["data"]
    assert (token["state"], token["used_by"]) == ("used", member)
    refused = await world.call("DELETE", f"{TOKENS}/{token['id']}")
    assert (refused.status, refused.code) == (409, "join-token-used")
    (key,) = (await world.get(KEYS, query={"filter[member]": member})).json["data"]
    ended = await world.call("DELETE", f"{KEYS}/{key['id']}")
    assert ended.json["retired_at"] is not None
    assert (await world.call("DELETE", f"{KEYS}/{key['id']}")).json["retired_at"] == ended.json["retired_at"]
    assert (await world.get(KEYS, query={"filter[member]": "node_other"})).json["data"] == []


async def test_a_revoked_token_is_revoked_once(world: World) -> None:
    made = await world.made(TOKENS, {})
    first = await world.call("DELETE", f"{TOKENS}/{made['id']}")
    assert first.json["state"] == "revoked"
    assert (await world.call("DELETE", f"{TOKENS}/{made['id']}")).content == first.content
    assert (await world.call("DELETE", f"{TOKENS}/jtk_none")).status == 404


async def test_a_rotation_of_the_authority(world: World) -> None:
    await joined(world)
    rotated = await world.post(f"{AUTHORITIES}/actions/rotate", headers={"idempotency-key": "k"})
    again = await world.post(f"{AUTHORITIES}/actions/rotate", headers={"idempotency-key": "k"})
    assert (rotated.status, again.content) == (201, rotated.content)
    listed = (await world.get(AUTHORITIES)).json["data"]
    assert [each["keys"] for each in listed] == [0, 1] or listed[0]["created_at"] == listed[1]["created_at"]
    used = next(each for each in listed if each["keys"])
    refused = await world.post(f"{AUTHORITIES}/{used['id']}/actions/retire")
    assert (refused.status, refused.code) == (409, "node-authority-in-use")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a b"}, "name"),
        ({"name": "join-tokens"}, "name"),
        ({"region": "Nord"}, "region"),
        ({"zone": ""}, "zone"),
        ({"labels": {"a": "b c"}}, "labels"),
        ({"labels": {"": "b"}}, "labels"),
        ({"labels": {str(n): "" for n in range(65)}}, "labels"),
        ({"expires_in": 3601}, "expires_in"),
        ({"expires_in": 59}, "expires_in"),
        ({"kind": "server"}, "kind"),
        ({"subnet": "10.64.0.0/20"}, "subnet"),
    ],
)
async def test_a_token_of_what_cannot_be_is_refused_by_its_field(world: World, body: Any, field: str) -> None:
    answer = await world.post(TOKENS, body)
    assert answer.status in (400, 422)
    assert answer.json["errors"][0]["field"].startswith(field)
    assert (await world.get(TOKENS)).json["data"] == []


async def test_a_name_that_is_taken_is_refused(world: World) -> None:
    answer = await world.post(TOKENS, {"name": world.node.name})
    assert (answer.status, answer.code) == (409, "node-name-taken")


async def test_a_server_without_a_node_port_gives_no_tokens(world: World) -> None:
    world.app.state.context.node_urls = ()
    answer = await world.post(TOKENS, {})
    assert (answer.status, answer.code) == (409, "no-node-port")
    assert "--node-port" in answer.json["resolution"]


async def test_a_token_is_not_promised_to_be_told_again(world: World) -> None:
    answer = await world.post(TOKENS, {}, headers={"idempotency-key": "k"})
    assert (answer.status, answer.code) == (409, "not-repeatable")
