"""The page `/docs`: the OpenAPI document for people, as one page of HTML without scripts, made here and served from here.

FastAPI's own page loads a script from elsewhere, which a platform without a way out cannot, and which would be somebody
else's code on the origin of the API. The page's policy allows its one style sheet and nothing more.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color-scheme: light dark }
code { font-family: ui-monospace, monospace; font-size: 13px } nav a { margin-right: 1rem }
details { border-top: 1px solid #8884; padding: .3rem 0 } summary { cursor: pointer }
summary b { display: inline-block; min-width: 4.5rem } table { border-collapse: collapse; margin: .4rem 0 1rem }
td, th { text-align: left; vertical-align: top; padding: .15rem .9rem .15rem 0 } small { opacity: .75 }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'"
_SCHEMAS = "#/components/schemas/"

Json = Mapping[str, Any]


def install_reference(app: FastAPI, path: str) -> None:
    """Serve the page of the app's document at this path."""

    @cache
    def page() -> bytes:
        return render(app.openapi()).encode()

    async def show(_: Request) -> Response:
        content = await run_in_threadpool(page)
        return HTMLResponse(content, headers={"Content-Security-Policy": _POLICY})

    app.add_route(path, show, include_in_schema=False)


def render(document: Json) -> str:
    """The page of an OpenAPI document."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups[(operation.get("tags") or ["other"])[0]].append(_operation(method, path, operation))
    info = document["info"]
    links = " ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in (*groups, "schemas"))
    sections = "".join(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(each)}' for tag, each in groups.items())
    schemas = "".join(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{escape(info['title'])} API</h1><p>{escape(info.get('description', ''))} The same for machines: "
        f'<a href="/v1/openapi.json">/v1/openapi.json</a>. Requests carry <code>Authorization: Bearer TOKEN</code>.</p>'
        f'<nav>{links}</nav>{sections}<h2 id="schemas">schemas</h2>{schemas}</html>'
    )


def _operation(method: str, path: str, operation: Json) -> str:
    text = operation.get("description", operation.get("summary", ""))
    body = operation.get("requestBody", {}).get("content", {})
    answers = operation["responses"].items()
    parts = (
        f"<p>{escape(text)}</p>",
        f"<p><small>permission <code>{escape(str(operation.get('x-permission', '')))}</code></small></p>",
        _table("parameters", (_parameter(each) for each in operation.get("parameters", ()))),
        _table("body", ((f"<code>{escape(kind)}</code>", _type(each["schema"])) for kind, each in body.items())),
        _table("answers", ((f"<code>{escape(status)}</code>", _answer(answer)) for status, answer in answers)),
    )
    head = f"<summary><b>{escape(method.upper())}</b> <code>{escape(path)}</code> {escape(_first(text))}</summary>"
    return f'<details id="{escape(operation["operationId"])}">{head}{"".join(parts)}</details>'


def _parameter(parameter: Json) -> tuple[str, ...]:
    needed = "" if parameter.get("required") else "optional"
    told = parameter.get("description", "")
    return (
        f"<code>{escape(parameter['name'])}</code>",
        escape(parameter["in"]),
        _type(parameter["schema"]),
        needed,
        escape(told),
    )


def _answer(answer: Json) -> str:
    kinds = answer.get("content", {}).items()
    return ", ".join(f"<code>{escape(kind)}</code> {_type(each.get('schema', {}))}" for kind, each in kinds)


def _schema(name: str, schema: Json) -> str:
    needed = set(schema.get("required", ()))
    rows = (
        (
            f"<code>{escape(field)}</code>",
            _type(each),
            "" if field in needed else "optional",
            escape(each.get("description", "")),
        )
        for field, each in schema.get("properties", {}).items()
    )
    told = escape(schema.get("description", ""))
    return f'<details id="{escape(name)}"><summary><code>{escape(name)}</code> {told}</summary>{_table("", rows)}</details>'


def _type(schema: Json) -> str:
    """A type in a few words; a schema's name leads to it."""
    if reference := str(schema.get("$ref", "")):
        name = escape(reference.removeprefix(_SCHEMAS))
        return f'<a href="#{name}">{name}</a>'
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(each) for each in choices)
    if "enum" in schema or "const" in schema:
        return " | ".join(f"<code>{escape(str(each))}</code>" for each in schema.get("enum", (schema.get("const"),)))
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema.get('items', {}))}"
        case "object" if isinstance(schema.get("additionalProperties"), Mapping):
            return f"map to {_type(schema['additionalProperties'])}"
        case kind:
            return escape(str(schema.get("format") or kind or "anything"))


def _first(text: str) -> str:
    """The first sentence."""
    return text.split("\n", 1)[0].split(". ", 1)[0].rstrip(".")


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> str:
    cells = list(_rows(rows))
    head = f"<tr><th>{escape(title)}</th></tr>" if title else ""
    return f"<table>{head}{''.join(cells)}</table>" if cells else ""


def _rows(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
