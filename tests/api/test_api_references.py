"""References inside of bodies and filters: what is somebody else's is to each of them as what is not there.

The authorization matrix (`tests.api.matrix`) asks each operation about foreign things in its path, its query and the first
level of its body. Here are the references further down, and those that are names: a mount's volume, a variable's secret,
a rule's source, an image by its digest, the resources of a token, a filter. A new field that sounds like a reference fails
here until it is in the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.api.api_world import ADMIN, DOCUMENT
from tests.api.matrix import CALLERS, OPERATIONS, Matrix, Operation, Things, asked_of, make_matrix, told
from tests.contract.images_samples import digest_of, docker_save, entry, layer

BY_NAME = {operation.name: operation for operation in OPERATIONS}
OF_CONFIG: Mapping[str, Any] = {
    "config.mounts[].source": {"config": {"mounts": [{"source": "@", "destination": "/data"}]}},
    "env.*.secret": {"env": {"A": {"secret": "@"}}},
}
OF_DEPLOYMENT = {**OF_CONFIG, "image": {"image": "@"}}
OF_GROUP = {f"{field}[].source": field for field in ("allow", "deny")}
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "create_app": {path: {"name": "fresh", **body} for path, body in OF_CONFIG.items()},
    "update_app": {"config.mounts[].source": OF_CONFIG["config.mounts[].source"]},
    "create_deployment": OF_DEPLOYMENT,
    "plan_deployment": OF_DEPLOYMENT,
    "change_env": {"env.*.secret": OF_CONFIG["env.*.secret"]},
    "create_group": {"allow[].source": {"name": "fresh", "allow": [{"source": "@"}]}},
    "change_group": {path: {field: [{"source": "@"}]} for path, field in OF_GROUP.items()},
    "create_token": {"resources[]": {"name": "fresh", "resources": ["@"]}},
}
"""For each operation its fields that refer to a thing further down, or by name, with a body; `@` is the reference."""
MEANT: Mapping[str, tuple[str, ...]] = {
    "mounts[].source": ("volume", "volume_name"),
    "env.*.secret": ("secret", "secret_name"),
    "allow[].source": ("group:{group}", "app:{app}", "group:{group_name}", "app:{app_name}"),
    "deny[].source": ("group:{group}", "app:{app}", "group:{group_name}", "app:{app_name}"),
    "image": ("image", "loaded_name", "registry.example/absent@{loaded_digest}", "{loaded_name}@{loaded_digest}"),
    "resources[]": ("app", "project", "organization"),
}
"""What stands in a field, by the end of its path."""
LATER = frozenset({"create_app", "update_app"})
"""What a config refers to is looked for when it is deployed."""
FILTERS = frozenset(
    {"instance", "filter[owner]", "filter[member]", "filter[resource]", "filter[actor]", "filter[digest]"}
)
SOUNDING = re.compile(
    r"(?:^|\.)(source|secret|image|resources\[\]|[a-z_]+_id|app|volume|group|node|snapshot|instance)$"
)
_FRESH = re.compile(r"[a-z]+_[0-9a-z]{26}|pat_[0-9A-Za-z]+")
"""What each making makes anew."""


@dataclass(frozen=True)
class Case:
    """One reference of one operation."""

    operation: Operation
    field: str
    reference: str

    def __str__(self) -> str:
        return f"{self.operation.name}-{self.field}-{self.reference}"


def of_bodies() -> Iterator[Case]:
    for name, fields in FIELDS.items():
        for field in fields:
            for reference in next(meant for end, meant in MEANT.items() if field.endswith(end)):
                yield Case(BY_NAME[name], field, reference if "{" in reference else f"{{{reference}}}")


def of_filters() -> Iterator[Case]:
    meant = {
        "instance": ("instance",),
        "filter[digest]": ("loaded_digest",),
        "filter[actor]": ("member",),
        "filter[member]": ("node",),
        "filter[owner]": ("app",),
        "filter[resource]": ("app", "volume"),
    }
    for operation in OPERATIONS:
        for field in () if operation.streams else operation.parameters("query").keys() & FILTERS:
            for reference in meant[field]:
                yield Case(operation, field, f"{{{reference}}}")


CASES = sorted((*of_bodies(), *of_filters()), key=str)


async def named_matrix(spool: Path) -> tuple[Matrix, Things, Things]:
    """The matrix; and the other organization's things and absent ones, with names besides ids."""
    matrix = await make_matrix(spool)
    query = {"project": matrix.world.foreign.id}
    for path, body in (("secrets", {"name": "THEIRS", "value": "x"}), ("security-groups", {"name": "inside"})):
        await matrix.world.made(f"/v1/{path}", body, query=query, token=ADMIN)
    tar = docker_save([layer(entry("bin/theirs", b"x"))], ["theirs:v1"])
    upload = await matrix.world.made("/v1/images/uploads", query=query, token=ADMIN)
    headers = {"Content-Range": f"bytes 0-{len(tar) - 1}/*", "content-type": "application/octet-stream"}
    path = f"/v1/images/uploads/{upload['id']}"
    await matrix.world.call("PATCH", path, raw=tar, headers=headers, query=query, token=ADMIN)
    loaded = await matrix.world.call("PUT", path, query={**query, "digest": digest_of(tar)}, token=ADMIN)
    assert loaded.status == 201, loaded.content
    digest = loaded.json["data"][0]["digest"]
    names = {"volume_name": "theirs-data", "secret_name": "THEIRS", "group_name": "inside", "app_name": "theirs-shop"}
    absent_names = {
        "volume_name": "absent-data",
        "secret_name": "ABSENT",
        "group_name": "absent-g",
        "app_name": "absent-s",
    }
    gone = {name: re.sub(r"[0-9a-z]{26}$", "0" * 26, value) for name, value in matrix.foreign.items()}
    return (
        matrix,
        {**matrix.foreign, **names, "loaded_name": "theirs:v1", "loaded_digest": digest},
        {**gone, **absent_names, "loaded_name": "absent:v1", "loaded_digest": f"sha256:{'0' * 64}"},
    )


def filled(value: Any, reference: str) -> Any:
    match value:
        case dict():
            return {name: filled(each, reference) for name, each in value.items()}
        case list():
            return [filled(each, reference) for each in value]
        case _:
            return reference if value == "@" else value


async def answers(case: Case, matrix: Matrix, things: Things) -> list[tuple[int, str]]:
    """What each caller is told who asks with the reference."""
    reference = case.reference.format_map(things)
    found = []
    for caller in CALLERS:
        asked = asked_of(case.operation, matrix.own, without=FILTERS)
        body, query = asked.body, asked.query
        if case.field in FILTERS:
            query = {**query, case.field: reference}
        else:
            body = filled(FIELDS[case.operation.name][case.field], reference)
        answer = await matrix.world.call(
            case.operation.method, asked.address(case.operation), body, token=caller.token, query=query
        )
        status, content = told(answer, {"reference": reference, **things})
        found.append((status, _FRESH.sub("FRESH", json.dumps(content))))
    return found


async def rows_of_foreign(matrix: Matrix) -> Any:
    foreign = matrix.world.foreign
    return await matrix.world.control.read(
        lambda tx: [
            [row for row in getattr(tx, name).select() if getattr(row, "project_id", "") == foreign.id]
            for name in ("apps", "volumes", "secrets", "security_groups", "images")
        ]
    )


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_foreign_reference_inside_is_as_an_absent_one(case: Case, tmp_path: Path) -> None:
    matrix, theirs, gone = await named_matrix(tmp_path / "one")
    before = await rows_of_foreign(matrix)
    foreign = await answers(case, matrix, theirs)
    assert await rows_of_foreign(matrix) == before
    if case.operation.name in LATER:
        matrix, _, gone = await named_matrix(tmp_path / "other")
    else:
        assert case.field in FILTERS or all(status >= 400 for status, _ in foreign)
    absent = await answers(case, matrix, gone)
    for caller, one, other in zip(CALLERS, foreign, absent, strict=True):
        assert one == other, caller


def fields_below(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The paths of all fields of a body that hold a text, `[]` for the entries of a list and `*` for those of a map."""
    if "$ref" in schema:
        yield from fields_below(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]], path)
    for each in schema.get("anyOf", ()):
        yield from fields_below(each, path)
    for name, each in schema.get("properties", {}).items():
        yield from fields_below(each, f"{path}.{name}" if path else name)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from fields_below(schema["additionalProperties"], f"{path}.*")
    if schema.get("type") == "array":
        yield from fields_below(schema["items"], f"{path}[]")
    if schema.get("type") == "string":
        yield path


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_each_field_that_sounds_like_a_reference_is_in_a_table(operation: Operation) -> None:
    content = operation.spec.get("requestBody", {}).get("content", {}).get("application/json", {})
    found = {path for path in fields_below(content.get("schema", {})) if SOUNDING.search(path)}
    of_matrix = {path for path in found if path in operation.body_fields and path != "image"}
    assert found - of_matrix == FIELDS.get(operation.name, {}).keys(), "add it to FIELDS, or to the matrix' bodies"
