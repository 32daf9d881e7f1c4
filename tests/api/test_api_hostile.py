"""Hostile requests to every operation of the document: refused with the name of the field, and nothing of them is stored.

What each operation is asked begins as a request that works (`tests.fuzz.api_things`), of which one part is made hostile; a
new operation is asked as soon as it is in the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.api.api_world import ADMIN, DOCUMENT, Answer, World, census
from tests.api.matrix import OPERATIONS, Asked, Operation
from tests.fuzz.api_things import make_request

CHANGING = [each for each in OPERATIONS if each.method != "GET"]
WITH_BODY = [each for each in CHANGING if "application/json" in each.spec.get("requestBody", {}).get("content", {})]
WITH_KEY = [each for each in CHANGING if "Idempotency-Key" in each.parameters("header")]
RESUMED = {"append_upload"}
"""Takes bodies beyond 10 MB in another form than JSON; what it took already is told by their range, and not by a key."""
CHANGES_NOTHING = {"plan_deployment"}
ENDS_ITS_TOKEN = {"sign_out"}
"""Nobody can ask a second time."""
NOBODY_ANSWERS = {"exec_command", "get_logs"}
"""No agent runs here."""
REFUSED = (400, 401, 403, 404, 409, 422)


class Target:
    """One operation, and a request to it that works."""

    def __init__(self, world: World, operation: Operation, asked: Asked) -> None:
        self._world = world
        self.operation = operation
        self.asked = asked
        schema = _schema(operation.spec.get("requestBody", {}))
        self.fields: Mapping[str, Any] = _named(schema).get("properties", {})

    async def send(
        self,
        *,
        body: object = None,
        raw: bytes | None = None,
        path: Mapping[str, str] = {},
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """The request that works, with some of it replaced."""
        asked = self.asked
        if body is None and raw is None:
            body, raw = asked.body, asked.raw
        sent = {"authorization": f"Bearer {ADMIN}"} | {name.lower(): value for name, value in asked.headers.items()}
        return await self._world.call(
            self.operation.method,
            self.operation.path.format_map({**asked.path, **path}),
            body,
            raw=raw,
            token=None,
            query={**asked.query, **query},
            headers={**sent, **headers},
        )


def _schema(content: Mapping[str, Any]) -> Any:
    return content.get("content", {}).get("application/json", {}).get("schema", {})


def _named(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object that a schema names, be it optional or not."""
    reference = schema.get("$ref") or next((each["$ref"] for each in schema.get("anyOf", ()) if "$ref" in each), "")
    found: Mapping[str, Any] = DOCUMENT["components"]["schemas"].get(reference.rpartition("/")[2], schema)
    return found


def _given_by_us(operation: Operation) -> Iterator[str]:
    """Fields that the operation answers with, and that nobody may set."""
    for status, answer in operation.spec["responses"].items():
        if status.startswith("2"):
            yield from _named(_schema(answer)).get("properties", {})


@pytest.fixture
async def target(world: World, request: pytest.FixtureRequest) -> Target:
    operation: Operation = request.param
    return Target(world, operation, await make_request(world, operation))


def each_of(operations: list[Operation]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("target", operations, ids=lambda each: each.name, indirect=True)


async def test_a_body_beyond_ten_megabytes_is_refused_by_each_operation_that_takes_no_upload(world: World) -> None:
    before, raw = await census(world), b" " * 10_000_001
    for operation in CHANGING:
        if operation.name not in RESUMED:
            path = re.sub(r"\{\w+\}", "1", operation.path)
            answer = await world.call(operation.method, path, raw=raw, token=ADMIN)
            assert (answer.status, answer.code) == (413, "body-too-large"), operation.name
    assert await census(world) == before


@each_of(WITH_BODY)
async def test_what_is_no_body_of_it_is_refused_and_nothing_is_stored(world: World, target: Target) -> None:
    before = await census(world)
    for raw in (
        b"[" * 60_000,  # what a stranger may send at most is little more
        b"{" + b'"a":{' * 12_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'"text"',
        b"[]",
        b"NaN",
        b"\xff\xfe{}",
        b"{",
    ):
        answer = await target.send(raw=raw)
        assert answer.status == 400, (raw[:20], answer.content)
    assert await census(world) == before


@each_of(WITH_BODY)
async def test_a_field_that_is_unknown_ours_to_set_or_of_another_type_is_named(world: World, target: Target) -> None:
    before = await census(world)
    ours = set(_given_by_us(target.operation)) - target.fields.keys()
    for field in ("is_admin", "__proto__", *sorted(ours)):
        answer = await target.send(body={**(target.asked.body or {}), field: "x"})
        assert (answer.status, answer.json["errors"][0]["field"]) == (400, field)
    for field, schema in target.fields.items():
        for value in ({"x": [1]}, [[None]], 10**400, float("nan"), True, "\0"):
            if value is True and "boolean" in json.dumps(schema):
                continue
            answer = await target.send(raw=json.dumps({**(target.asked.body or {}), field: value}).encode())
            if answer.status == 503 and field == "stdin":
                continue  # what a command reads may hold a NUL; nobody runs it here
            assert answer.status in REFUSED, (field, value, answer.content)
            if answer.status in (400, 422):
                assert any(error["field"].startswith(field) for error in answer.json["errors"]), (field, answer.json)
    assert await census(world) == before


@each_of(OPERATIONS)
async def test_a_hostile_name_or_parameter_is_refused_by_its_own_and_a_sound_request_served(
    world: World, target: Target
) -> None:
    """A NUL in a way that holds for each store: not all of them can be asked for it."""
    before = await census(world)
    for name in target.asked.path:
        answer = await target.send(path={name: "a\0b"})
        assert (answer.status, answer.json["errors"][0]["field"]) == (400, name)
        for value in ("x" * 5000, "..", "%2e%2e", "é\u202e", "' OR 1=1 --", "{}", "-1", "1e400", " "):
            answer = await target.send(path={name: value})
            assert answer.status in REFUSED, (name, value, answer.content)
    for name, parameter in target.operation.parameters("query").items():
        answer = await target.send(query={name: "\0"})
        assert (answer.status, answer.json["errors"][0]["field"]) == (400, name)
        if "maxLength" in json.dumps(parameter):
            answer = await target.send(query={name: "x" * 5000})
            assert answer.status in (400, 422), (name, answer.content)
            assert answer.json["errors"][0]["field"] == name
    for name in target.operation.parameters("header"):
        answer = await target.send(headers={name.lower(): "x" * 5000})
        assert answer.status in (*REFUSED, 412), (name, answer.content)
    unknown = await target.send(query={"is_admin": "1"})
    assert (unknown.status, unknown.json["errors"][0]["field"]) == (400, "is_admin")
    assert await census(world) == before
    if target.operation.streams:
        return  # it would go on for ever
    sound = await target.send()
    assert sound.status in ((503,) if target.operation.name in NOBODY_ANSWERS else range(200, 300)), sound.content


@each_of([each for each in WITH_KEY if each.name not in ENDS_ITS_TOKEN | CHANGES_NOTHING | RESUMED])
async def test_a_key_that_comes_again_gives_the_first_answer_and_no_other_request_gets_it(
    world: World, target: Target
) -> None:
    """Or it is refused at once, where an answer is secret or large and so not kept."""
    before = await census(world)
    key = {"idempotency-key": "k"}
    first = await target.send(headers=key)
    if first.status == 409 and first.code == "not-repeatable":
        assert await census(world) == before
        return
    assert first.status < 300, first.content
    after = await census(world)
    again = await target.send(headers=key)
    assert (again.status, again.content, again.headers.get("etag")) == (
        first.status,
        first.content,
        first.headers.get("etag"),
    )
    other = await target.send(raw=json.dumps(target.asked.body).encode() + b" ", headers=key)
    assert (other.status, other.code) == (409, "idempotency-key-reused")
    assert await census(world) == after
