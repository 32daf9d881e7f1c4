"""The page for people: complete, and from here alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from html.parser import HTMLParser
from typing import Any

import pytest

from shellwego.api.rest import document
from shellwego.api.rest.app import openapi_document
from shellwego.api.rest.reference import render
from tests.api.api_world import World


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links |= {given["href"]} if tag == "a" else set()
        self.loads += [value for name, value in given.items() if name == "src" or (name == "href" and tag != "a")]


async def test_the_page_loads_and_runs_nothing(world: World) -> None:
    answer = await world.get("/docs", token=None)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = answer.content.decode()
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & page.tags
    assert page.loads == []
    assert "://" not in text
    style = text.partition("<style>")[2].partition("</style>")[0]
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert f"default-src 'none'; style-src 'sha256-{hashed}'" in policy


async def test_the_page_has_every_operation_and_every_link_leads_somewhere(world: World) -> None:
    text = (await world.get("/docs", token=None)).content.decode()
    page = Page(text)
    document = openapi_document()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert {operation["operationId"] for operation in operations} <= set(page.ids)
    assert set(document["components"]["schemas"]) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= set(page.ids)
    assert re.search(r"<b>POST</b> <code>/v1/apps/\{app\}/deployments</code>", text)


async def test_every_answer_forbids_to_be_run_or_framed(world: World) -> None:
    for path in ("/v1/apps", "/v1/openapi.json", "/nothing"):
        assert (
            "default-src 'none'; frame-ancestors 'none'" in (await world.get(path)).headers["content-security-policy"]
        )


def test_texts_of_the_document_are_no_markup() -> None:
    operation = {"operationId": "x", "description": "<script>", "responses": {}}
    document = {"info": {"title": "<b>"}, "paths": {"/<i>": {"get": operation}}, "components": {"schemas": {}}}
    assert not {"script", "i"} & Page(render(document)).tags


@pytest.mark.parametrize("path", ["/v1/openapi.json", "/docs"])
async def test_who_asks_for_the_document_keeps_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    begun, others_were_answered = threading.Event(), threading.Event()
    build = document.build_document

    def slow(app: Any) -> dict[str, Any]:
        begun.set()
        assert others_were_answered.wait(10)
        return build(app)

    monkeypatch.setattr(document, "build_document", slow)
    asked = asyncio.ensure_future(world.get(path, token=None))
    assert await asyncio.to_thread(begun.wait, 10)
    assert (await world.get("/healthz", token=None)).status == 200
    others_were_answered.set()
    assert (await asked).status == 200
