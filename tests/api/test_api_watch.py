"""Streams that last: lists that are watched, resume points that make no sense any more, readers that take nothing."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from shellwego.api.rest import pieces
from shellwego.control.loops.outbox import relay
from shellwego.control.loops.retention import prune_events
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import DOCUMENT, FOREIGN, OWNER, World, http_scope
from tests.api.listener import Listener, reach

LISTS = [
    path
    for path, operations in DOCUMENT["paths"].items()
    if any(parameter["name"] == "watch" for parameter in operations.get("get", {}).get("parameters", ()))
]


def _names(listener: Listener) -> list[list[str]]:
    return [[app["name"] for app in event["data"]["data"]] for event in listener.events]


async def test_a_watched_list_comes_at_once_and_again_whenever_it_is_another(world: World) -> None:
    await world.made("/v1/apps", {"name": "a"})
    listener = Listener(world, "/v1/apps?watch=true&sort=name")
    await reach(world, lambda: _names(listener) == [["a"]])
    await world.made("/v1/apps", {"name": "b"})
    await reach(world, lambda: _names(listener) == [["a"], ["a", "b"]])
    await world.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(10)
    assert len(listener.events) == 2
    assert {event["event"] for event in listener.events} == {"list"}
    await listener.leave()


async def test_a_watched_list_ends_when_its_token_is_revoked(world: World) -> None:
    made = await world.made("/v1/user/tokens", {"name": "short"})
    listener = Listener(world, "/v1/apps?watch=true", token=made["secret"])
    await reach(world, lambda: bool(listener.events))
    before = world.clock.monotonic()
    await world.call("DELETE", f"/v1/user/tokens/{made['id']}")
    await reach(world, listener.task.done)
    assert listener.events[-1]["data"]["code"] == "unauthenticated"
    assert world.clock.monotonic() - before <= 1.5


async def test_what_may_not_be_listed_may_not_be_watched(world: World) -> None:
    query = {"project": world.project.id, "watch": "true"}
    assert (await world.get("/v1/apps", token=FOREIGN, query=query)).status == 404
    assert (await world.get("/v1/apps", token=None, query=query)).status == 401


@pytest.mark.parametrize("path", LISTS)
async def test_each_list_says_that_it_can_be_watched_and_refuses_what_is_neither(world: World, path: str) -> None:
    content = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
    if "{" not in path and path != "/v1/users" and not path.startswith("/v1/nodes"):
        needed = {"scope": world.project.id} if path == "/v1/grants" else {}
        answer = await world.get(path, query={"watch": "yes", **needed})
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, "watch")
        assert (await world.get(path, query={"watch": "false", **needed})).status == 200


async def _events(world: World, *names: str) -> None:
    for name in names:
        await world.made("/v1/apps", {"name": name})
    await relay(world.control)


async def test_who_resumes_from_before_what_is_kept_is_told_what_he_missed(world: World) -> None:
    await _events(world, "a", "b")
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(100)
    last_old = (await world.get("/v1/events?limit=1")).json["data"][0]["seq"]
    await _events(world, "c")
    assert await world.commit(lambda unit: prune_events(unit, 50.0)) > 0
    listener = Listener(world, "/v1/events/stream", headers={"last-event-id": "1"})
    await reach(world, lambda: len(listener.events) == 2)
    notice, first = listener.events
    assert (notice["event"], notice["id"]) == ("events.pruned", str(last_old))
    assert notice["data"]["data"] == {"first": "2", "last": str(last_old)}
    assert first["data"]["data"]["name"] == "c"
    await listener.leave()
    resumed = Listener(world, "/v1/events/stream", headers={"last-event-id": notice["id"]})
    await reach(world, lambda: len(resumed.events) == 1)
    assert resumed.events[0]["data"]["data"]["name"] == "c"
    await resumed.leave()


async def test_the_number_of_somebody_elses_event_resumes_ones_own(world: World) -> None:
    await _events(world, "ours")
    await world.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    await relay(world.control)
    theirs = (await world.get("/v1/events?limit=1", token=FOREIGN)).json["data"][0]["seq"]
    listener = Listener(world, "/v1/events/stream", headers={"last-event-id": str(theirs)})
    await reach(world, lambda: listener.status == 200)
    await _events(world, "later")
    await reach(world, lambda: bool(listener.events))
    assert [event["data"]["data"]["name"] for event in listener.events] == ["later"]
    await listener.leave()


@pytest.mark.parametrize("last", ["999", str(2**62), "9" * 20])
async def test_a_number_that_was_never_given_is_refused(world: World, last: str) -> None:
    await _events(world, "a")
    answer = await world.get("/v1/events/stream", headers={"Last-Event-ID": last})
    assert (answer.status, answer.code) == (400, "future-event-id")


@pytest.mark.parametrize("path", ["/v1/events/stream", "/v1/apps?watch=true", "/v1/audit/export"])
async def test_a_reader_that_takes_nothing_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(pieces, "SLOW_S", 0.1)
    await _events(world, "a")
    sent: list[MutableMapping[str, Any]] = []

    async def stuck(message: MutableMapping[str, Any]) -> None:
        sent.append(message)
        if len(sent) > 1:
            await asyncio.Event().wait()

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    scope = http_scope(path, {"authorization": f"Bearer {OWNER}"})
    async with asyncio.timeout(10):
        await world.app(scope, receive, stuck)
    assert len(sent) == 2
    assert not any(message.get("more_body") is False for message in sent)
