"""Hostile bodies for every operation that takes one: refused with the name of the field, and nothing of them is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.api_bodies import BODIES, OF_ACCESS
from tests.api.api_world import DOCUMENT, World
from tests.fuzz.api_things import make_things

WITH_BODY = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if "application/json" in operation.get("requestBody", {}).get("content", {})
}
KEEPS_NO_ANSWER = {"create_token", "create_webhook", "plan_deployment", "exec_command"}
"""Their answers are secret, large, or change nothing: they refuse a key, or do not need one."""


class Target:
    """One operation about things that exist."""

    def __init__(self, world: World, name: str, things: dict[str, Any]) -> None:
        self._world = world
        self._method, path, operation = WITH_BODY[name]
        for key, value in things["paths"].items():
            path = path.replace(f"{{{key}}}", value)
        self._path = path
        self.good = things["bodies"][name]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        reference = schema.get("$ref") or next(each["$ref"] for each in schema["anyOf"] if "$ref" in each)
        self.fields = list(DOCUMENT["components"]["schemas"][reference.rpartition("/")[2]]["properties"])

    async def send(self, body: object = None, *, raw: bytes | None = None, **headers: str) -> Any:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._world.call(self._method, self._path, body, raw=raw, headers=given)


@pytest.fixture(params=sorted(WITH_BODY.keys() - OF_ACCESS.keys()))
async def target(world: World, request: pytest.FixtureRequest) -> Target:
    return Target(world, request.param, await make_things(world))


def test_each_operation_with_a_body_has_one_that_makes_sense() -> None:
    assert WITH_BODY.keys() - {"create_app"} == BODIES.keys() | OF_ACCESS.keys()


async def _stored(world: World) -> str:
    """All that a body could have got into."""
    return await world.control.read(
        lambda tx: (
            repr((tx.apps.select(), tx.deployments.select(), tx.images.select(), tx.tokens.select()))
            + repr((tx.instances.select(), tx.webhooks.select(), tx.events.select(), tx.idempotency.select()))
        )
    )


async def test_what_is_no_body_of_it_is_refused_and_nothing_is_stored(world: World, target: Target) -> None:
    before = await _stored(world)
    refusals = {
        b" " * 10_000_001: 413,
        b"[" * 100_000: 400,
        b"{" + b'"a":{' * 50_000: 400,
        b'"text"': 400,
        b"[]": 400,
        b"NaN": 400,
        b"\xff\xfe{}": 400,
        b"{": 400,
    }
    for raw, status in refusals.items():
        answer = await target.send(raw=raw)
        assert answer.status == status, (raw[:20], answer.content)
    assert await _stored(world) == before


async def test_a_field_that_is_unknown_or_of_another_type_is_named(world: World, target: Target) -> None:
    before = await _stored(world)
    unknown = await target.send({**target.good, "is_admin": True})
    assert (unknown.status, unknown.json["errors"][0]["field"]) == (400, "is_admin")
    for field in target.fields:
        for value in ({"x": [1]}, [[None]], 10**400, True, "\0"):
            body = {**target.good, field: value}
            raw = json.dumps(body).encode()
            answer = await target.send(raw=raw)
            if answer.status == 503:
                assert field == "stdin", "nobody runs commands here, and what one reads may hold a NUL"
                continue
            if answer.status < 300:
                assert value is True, f"{field}={value!r} was taken: {raw!r}"
                return  # a flag, which may be true
            assert answer.status in (400, 404, 409, 422), answer.content
            if answer.status in (400, 422):
                assert any(error["field"].startswith(field) for error in answer.json["errors"]), (field, answer.json)
    assert await _stored(world) == before


async def test_a_key_that_comes_again_gives_the_first_answer_and_no_other_request_gets_it(
    world: World, target: Target, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["target"] in KEEPS_NO_ANSWER:
        return
    first = await target.send(target.good, idempotency_key="k")
    assert first.status < 300, first.content
    after = await _stored(world)
    again = await target.send(target.good, idempotency_key="k")
    assert (again.status, again.content) == (first.status, first.content)
    other = await target.send(raw=json.dumps(target.good).encode() + b" ", idempotency_key="k")
    assert (other.status, other.code) == (409, "idempotency-key-reused")
    assert await _stored(world) == after


@pytest.mark.parametrize(
    "path",
    [
        "/v1/apps/a%00b",
        "/v1/apps?project=%00",
        "/v1/events?filter[type]=a,%00",
        "/v1/audit?filter[actor]=%00",
        "/v1/vms/%00",
    ],
)
async def test_a_nul_in_a_path_or_query_is_refused_by_its_name(world: World, path: str) -> None:
    """In a way that holds for each store: not all of them can be asked for it."""
    answer = await world.call("GET", path.replace("%00", "\0") if "?" not in path else path)
    assert (answer.status, answer.json["errors"][0]["code"]) == (400, "bad-character")
