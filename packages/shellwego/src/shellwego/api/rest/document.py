"""The OpenAPI 3.1 document: what FastAPI derives, with bearer authentication and without what it cannot know."""

from __future__ import annotations

import json
from functools import cache
from threading import Lock
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from shellwego.api.rest.cookies import COOKIE
from shellwego.api.rest.guard import PUBLIC
from shellwego.api.rest.problems import MEDIA_TYPE
from shellwego.api.rest.sse import EVENT_STREAM
from shellwego.api.rest.watch import WATCH

_DESCRIPTION = "A sovereign cloud: apps in microVMs on your own machines."


def install_document(app: FastAPI, path: str) -> None:
    """Make our document that of the app, and serve it at this path.

    It takes a second to make and is half a megabyte, and anybody may ask for it: so it is made once, beside the loop that
    serves everybody, and kept as it is sent.
    """
    made = Lock()

    def document() -> dict[str, Any]:
        with made:
            if app.openapi_schema is None:
                app.openapi_schema = build_document(app)
            return app.openapi_schema

    @cache
    def written() -> bytes:
        return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()

    async def show(_: Request) -> Response:
        return Response(await run_in_threadpool(written), media_type="application/json")

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI has it be extended
    app.add_route(path, show, include_in_schema=False)


def build_document(app: FastAPI) -> dict[str, Any]:
    """The document of all operations."""
    schema = get_openapi(title=app.title, version="1", description=_DESCRIPTION, routes=app.routes)
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
    }
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for path in schema["paths"].values():
        for operation in path.values():
            _finish(operation)
    return schema


def _tell_watch(operation: dict[str, Any]) -> None:
    """A list that can be watched answers with a stream as well."""
    if any(parameter["name"] == WATCH for parameter in operation.get("parameters", ())):
        operation["responses"]["200"]["content"][EVENT_STREAM] = {"schema": {"type": "string"}}


def _finish(operation: dict[str, Any]) -> None:
    _tell_watch(operation)
    operation["security"] = [] if operation["x-permission"] == PUBLIC else [{"token": []}, {"session": []}]
    for status, response in list(operation["responses"].items()):
        content = response.get("content", {})
        if _is_derived(content):
            del operation["responses"][status]
        elif int(status) >= 400 and "application/json" in content:
            response["content"] = {MEDIA_TYPE: content["application/json"]}
        elif status == "204":
            response.pop("content", None)
        if "ETag" not in response.get("headers", {}) and int(status) < 300 and status != "204":
            response["headers"] = {"ETag": {"schema": {"type": "string"}}} | response.get("headers", {})


def _is_derived(content: dict[str, Any]) -> bool:
    """FastAPI adds its own 422 where ours is not declared."""
    reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    return str(reference).endswith("/HTTPValidationError")
