"""The OpenAPI 3.1 document: what FastAPI derives, with bearer authentication and without what it cannot know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from shellwego.api.rest.cookies import COOKIE
from shellwego.api.rest.guard import PUBLIC
from shellwego.api.rest.problems import MEDIA_TYPE

_DESCRIPTION = "A sovereign cloud: apps in microVMs on your own machines."


def install_document(app: FastAPI) -> None:
    """Make the app serve our document in place of FastAPI's."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build_document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


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


def _finish(operation: dict[str, Any]) -> None:
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
