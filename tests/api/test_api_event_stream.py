"""Events over the API: the stream of server-sent events, and their list."""

from __future__ import annotations

import pytest

from shellwego.control.events import events_after
from shellwego.control.loops.outbox import relay
from shellwego.control.scopes import SYSTEM
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import ADMIN, FOREIGN, World
from tests.api.listener import Listener, reach


async def test_a_stream_of_events_resumes_without_loss_or_double(world: World) -> None:
    for name in "abc":
        await world.made("/v1/apps", {"name": name})
    await relay(world.control)
    first = Listener(world, "/v1/events/stream", headers={"last-event-id": "0"})
    await reach(world, lambda: len(first.events) == 3)
    await first.leave()
    for name in "def":
        await world.made("/v1/apps", {"name": name})
    await relay(world.control)
    second = Listener(world, "/v1/events/stream", headers={"last-event-id": first.events[1]["id"]})
    await reach(world, lambda: len(second.events) == 4)
    names = [event["data"]["data"]["name"] for event in (*first.events[:2], *second.events)]
    assert names == list("abcdef")
    await world.made("/v1/apps", {"name": "g"})
    await relay(world.control)
    await reach(world, lambda: second.events[-1]["data"]["data"]["name"] == "g")
    await second.leave()


async def test_events_of_another_tenant_are_not_in_the_stream(world: World) -> None:
    listener = Listener(world, "/v1/events/stream", headers={"last-event-id": "0"})
    await world.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    await world.made("/v1/apps", {"name": "ours"})
    await relay(world.control)
    await reach(world, lambda: bool(listener.events))
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(10)
    assert [event["data"]["data"]["name"] for event in listener.events] == ["ours"]
    await listener.leave()


async def test_a_stream_ends_when_its_token_is_revoked(world: World) -> None:
    made = await world.made("/v1/user/tokens", {"name": "short"})
    listener = Listener(world, "/v1/events/stream", token=made["secret"])
    await reach(world, lambda: listener.status == 200)
    await world.call("DELETE", f"/v1/user/tokens/{made['id']}")
    await reach(world, listener.task.done)
    assert [event["event"] for event in listener.events] == ["error"]
    assert listener.events[0]["data"]["code"] == "unauthenticated"


async def test_a_narrowed_token_hears_of_its_project_alone_until_what_made_it_is_revoked(world: World) -> None:
    parent = await world.made("/v1/user/tokens", {"name": "parent"}, token=ADMIN)
    wish = {"name": "narrow", "resources": [world.project.id]}
    narrow = await world.made("/v1/user/tokens", wish, token=parent["secret"])
    listener = Listener(world, "/v1/events/stream", token=narrow["secret"], headers={"last-event-id": "0"})
    await world.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    await world.made("/v1/apps", {"name": "ours"})
    await relay(world.control)
    await reach(world, lambda: bool(listener.events))
    assert [event["data"]["data"]["name"] for event in listener.events] == ["ours"]
    await world.call("DELETE", f"/v1/user/tokens/{parent['id']}", token=ADMIN)
    await reach(world, listener.task.done)
    assert listener.events[-1]["data"]["code"] == "unauthenticated"


async def test_a_stream_ends_when_the_server_stops(world: World) -> None:
    listener = Listener(world, "/v1/events/stream")
    await reach(world, lambda: listener.status == 200)
    world.app.state.context.stopping.set()
    await reach(world, listener.task.done)
    assert [event["event"] for event in listener.events] == ["error"]
    assert listener.events[0]["data"]["code"] == "server-stopping", "an end without a word looks like all that there is"
    assert (await world.get("/readyz", token=None)).code == "stopping"


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 19, "٣"])
async def test_a_malformed_event_id_is_refused(world: World, last: str) -> None:
    value = last if last.isascii() else last.encode().decode("latin-1")
    assert (await world.get("/v1/events/stream", headers={"Last-Event-ID": value})).status == 400


async def test_events_are_listed_newest_first_and_filtered(world: World) -> None:
    for name in "abc":
        await world.made("/v1/apps", {"name": name})
    assert (await world.get("/v1/events")).json["data"] == []
    await relay(world.control)
    listed = (await world.get("/v1/events")).json["data"]
    assert [event["data"]["name"] for event in listed] == list("cba")
    assert all(event["data"]["app"] == event["resource"] for event in listed), "as in every event of an app's parts"
    assert (await world.get("/v1/events?filter[type]=app.deleted")).json["data"] == []
    assert len((await world.get(f"/v1/events?filter[resource]={listed[0]['resource']}")).json["data"]) == 1
    everything = (await world.get("/v1/events", token=ADMIN)).json["data"]
    assert len(everything) > 3
    assert (await world.get("/v1/events", token=FOREIGN)).json["data"] == []
    assert len(await world.control.read(lambda tx: events_after(tx, SYSTEM, 0))) == len(everything)
