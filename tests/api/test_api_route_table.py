"""The short way to an operation finds what the application's own router would."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.routing import Match

from shellwego.api.rest.app import application
from shellwego.api.rest.guard import operations
from shellwego.api.rest.table import RouteTable

APP = application("1", None)
OPERATIONS = operations(APP)


async def nowhere(*_: object) -> None:
    """What lies behind the table."""


TABLE = RouteTable(nowhere, OPERATIONS)


def scope_of(method: str, path: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "root_path": "", "headers": [], "query_string": b""}


def routed(method: str, path: str) -> tuple[Any, Any]:
    """The route and the parameters that the application's router finds."""
    scope = scope_of(method, path)
    for route in APP.routes:
        match, found = route.matches(scope)
        if match is Match.FULL:
            return found.get("route", route), found["path_params"]
    return None, None


@pytest.mark.parametrize("word", ["app_01j0000000000000000000000", "actions", "web%2F", "a b", "é"])
def test_every_operation_is_found_as_the_router_finds_it(word: str) -> None:
    for route in OPERATIONS:
        path = re.sub(r"\{\w+\}", word, route.path)
        for method in sorted(route.methods or ()):
            scope = scope_of(method, path)
            assert (TABLE.find(scope), scope["path_params"]) == routed(method, path), (method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/nothing"),
        ("GET", "/v1/apps/"),
        ("GET", "/v1//apps"),
        ("GET", "/"),
        ("HEAD", "/v1/apps"),
        ("PUT", "/v1/apps"),
        ("GET", "/docs"),
        ("GET", "/v1/openapi.json"),
    ],
)
def test_what_is_no_operation_goes_the_long_way(method: str, path: str) -> None:
    assert TABLE.find(scope_of(method, path)) is None
