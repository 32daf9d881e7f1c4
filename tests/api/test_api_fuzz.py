"""Random requests, near the schema and far from it: no defect of ours, and no answer that the document does not declare."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api import matrix
from tests.api.api_world import ADMIN, DOCUMENT, OWNER, World, make_world
from tests.fuzz import api_run
from tests.fuzz.api_run import ENVIRONMENT, ROOT
from tests.fuzz.api_things import make_request

OPERATIONS = [
    (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if not operation["operationId"].startswith(("wait_", "stream_"))
]
TEXT = st.text(max_size=12) | st.sampled_from(
    ["web", "shop", "512m", "1gb", "2", "v1", "/", "A", "\0", "-1", "../x", "é"]
)
SCALAR = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that mostly fit a schema."""
    if "$ref" in schema:
        return values(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of([values(each) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"]) | TEXT
    match schema.get("type"):
        case "object":
            return _objects(schema)
        case "array":
            return st.lists(values(schema["items"]), max_size=3)
        case "integer":
            return st.integers(-2, 70_000) | SCALAR
        case "number":
            return st.floats(-1, 4000) | SCALAR
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case _:
            return TEXT


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    if not properties:
        return st.dictionaries(TEXT, values(schema.get("additionalProperties") or {}), max_size=3)
    return st.fixed_dictionaries(
        {name: values(each) for name, each in properties.items() if name in required},
        optional={name: values(each) for name, each in properties.items() if name not in required},
    )


def bodies(operation: dict[str, Any]) -> st.SearchStrategy[Any]:
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        return st.none()
    return values(content["application/json"]["schema"]) | JSON


def queries(operation: dict[str, Any], place: str) -> st.SearchStrategy[dict[str, str]]:
    found = [p for p in operation.get("parameters", []) if p["in"] == place]
    text = TEXT | st.integers(-1, 200).map(str)
    if place == "header":
        text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
    return st.fixed_dictionaries({}, optional={p["name"]: text for p in found})


class Site:
    """A world with an app that runs; another one after each request that may have changed it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._worlds = 0
        self._world: World | None = None
        self._instance_id = ""

    async def attempt(self, method: str, path: str, request: dict[str, Any]) -> None:
        world = self._world or await self._begin()
        path = path.replace("{app}", "shop").replace("{instance}", self._instance_id).replace("{release}", "v1")
        path = path.replace("{node}", "one").replace("{", "").replace("}", "")
        answers = [await world.call(method, path, token=token, **request) for token in (OWNER, ADMIN)]
        if method != "GET" and any(answer.status < 300 for answer in answers):
            self._world = None

    async def _begin(self) -> World:
        self._worlds += 1
        self._world = world = await make_world(self._directory / str(self._worlds))
        await world.deployed()
        self._instance_id = (await world.running()).id
        return world


def test_the_fuzzer_of_the_whole_api_finds_no_fault_in_a_short_while() -> None:
    """Schemathesis with all its checks, signed in and not, in an environment of its own: no failure inside, no status and no
    body that the document does not declare. The long run is `scripts/fuzz 3600 api`."""
    assert ENVIRONMENT.exists(), "scripts/setup makes the environment of the API's fuzzer"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.api_run", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]


def test_a_long_run_fails_until_each_operation_was_answered_well_often_enough_and_none_failed_inside() -> None:
    fuzzer = api_run.Fuzzer({})
    fuzzer.counts = {name: Counter({200: api_run.ENOUGH}) for name in api_run.OPERATIONS}
    assert api_run.faults(fuzzer, whole=True) == [f"fewer than {api_run.CASES} cases: give it more time"]
    fuzzer.counts["list_apps"][404] = api_run.CASES
    assert api_run.faults(fuzzer, whole=True) == []
    fuzzer.counts["get_app"] = Counter({200: api_run.ENOUGH - 1, 404: 1000, 503: 1})
    assert api_run.faults(fuzzer, whole=True) == [f"below {api_run.ENOUGH} good answers: get_app={api_run.ENOUGH - 1}"]
    assert api_run.faults(fuzzer, whole=False) == []
    fuzzer.counts["get_app"][500] = 1
    assert api_run.faults(fuzzer, whole=False) == ["failed inside: get_app"]


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=[o[2]["operationId"] for o in OPERATIONS])
def test_no_request_finds_a_defect(method: str, path: str, operation: Any, tmp_path: Path) -> None:
    site = Site(tmp_path)

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(body=bodies(operation), query=queries(operation, "query"), headers=queries(operation, "header"))
    def examples(body: Any, query: dict[str, str], headers: dict[str, str]) -> None:
        runner.run(site.attempt(method, path, {"body": body, "query": query, "headers": headers}))

    with asyncio.Runner() as runner:
        examples()


@pytest.mark.parametrize("name", ["cancel_volume_move", "promote_volume"])
async def test_a_fuzzer_that_removed_the_node_of_all_volumes_is_still_given_requests_that_work(
    world: World, name: str
) -> None:
    gone = await world.call("DELETE", f"/v1/nodes/{world.node.id}", query={"force": "true"}, token=ADMIN)
    assert gone.status == 204, gone.content
    operation = next(each for each in matrix.OPERATIONS if each.name == name)
    asked = await make_request(world, operation)
    answer = await world.post(asked.address(operation), asked.body, query=asked.query, token=ADMIN)
    assert answer.status in (200, 202), answer.content
