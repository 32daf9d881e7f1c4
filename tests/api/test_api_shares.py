"""What one tenant may have open at once: streams, waits and requests, of which others are to have theirs."""

from __future__ import annotations

import asyncio

import pytest

from shellwego.api.rest.shares import LONGEST_TURN_S, LOOKS_PER_S, Shares
from shellwego.control.loops.outbox import relay
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, World
from tests.api.listener import Listener, reach

MANY = 5 * LOOKS_PER_S

STREAMS = ["/v1/apps?watch=true", "/v1/events/stream", "/v1/apps/shop/logs/stream"]


def bounded(world: World, *, of_principal: int = 100, of_organization: int = 100) -> None:
    world.app.state.context.shares = Shares(of_principal, of_organization)


async def opened(world: World, path: str, *tokens: str) -> list[Listener]:
    listeners = [Listener(world, path, token=token) for token in tokens]
    await reach(world, lambda: all(listener.status == 200 for listener in listeners))
    return listeners


async def assert_too_many(world: World, path: str) -> None:
    async with asyncio.timeout(10):  # what is not refused would not end
        answer = await world.get(path)
    assert (answer.status, answer.code) == (429, "too-many-open")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", STREAMS)
async def test_streams_of_one_principal_are_bounded_and_one_that_ends_makes_room(world: World, path: str) -> None:
    await world.deployed()
    await world.running()
    bounded(world, of_principal=2)
    first, second = await opened(world, path, *[str(world.token)] * 2)
    await assert_too_many(world, path)
    await assert_too_many(world, "/v1/apps")
    assert (await world.get("/v1/apps", token=VIEWER)).status == 200
    assert (await world.get("/v1/apps", token=FOREIGN)).status == 200
    await first.leave()
    (third,) = await opened(world, path, str(world.token))
    await asyncio.gather(second.leave(), third.leave())


@pytest.mark.parametrize("path", STREAMS)
async def test_streams_of_one_organization_are_bounded_whoever_opens_them(world: World, path: str) -> None:
    await world.deployed()
    await world.running()
    bounded(world, of_organization=2)
    listeners = await opened(world, path, str(world.token), VIEWER)
    await assert_too_many(world, path)
    await assert_too_many(world, "/v1/audit/export")
    assert (await world.get("/v1/apps")).status == 200
    listeners += await opened(world, "/v1/events/stream", FOREIGN, ADMIN, ADMIN)
    await asyncio.gather(*(listener.leave() for listener in listeners))
    assert (await world.get("/v1/audit/export")).status == 200


async def test_waits_count_as_streams_and_what_is_there_already_is_not_waited_for(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    state = (await world.get("/v1/apps/shop")).json["state"]
    await world.made("/v1/volumes", {"name": "data", "size": "1gb"})
    bounded(world, of_organization=2)
    waits = [
        asyncio.ensure_future(world.get(f"/v1/{path}/wait?state=never&timeout=20"))
        for path in ("apps/shop", "volumes/data")
    ]
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(1)
    await assert_too_many(world, "/v1/apps/shop/wait?state=never&timeout=20")
    await assert_too_many(world, "/v1/volumes/data/wait?state=never&timeout=20")
    assert (await world.get(f"/v1/apps/shop/wait?state={state}&timeout=20")).status == 200
    assert (await world.get("/v1/apps/shop/wait?state=never&timeout=0")).status == 200
    await world.clock.advance(30)
    assert [(await wait).status for wait in waits] == [200, 200]


async def test_many_watches_of_an_organization_look_in_turn_and_hold_up_no_other(world: World) -> None:
    many = await opened(world, "/v1/apps?watch=true", *[OWNER] * MANY)
    few = await opened(world, "/v1/apps?watch=true", *[FOREIGN] * 3)
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(10)
    for token in (OWNER, FOREIGN):
        await world.made("/v1/apps", {"name": "new"}, token=token)
    await relay(world.control)
    await world.clock.advance(1)
    assert all(len(listener.events) == 2 for listener in few)
    assert sum(len(listener.events) == 2 for listener in many) <= LOOKS_PER_S + 1
    await world.clock.advance(MANY / LOOKS_PER_S)
    assert all(len(listener.events) == 2 for listener in many)
    await asyncio.gather(*(listener.leave() for listener in (*many, *few)))


async def is_prompt(world: World) -> None:
    """One more watch sees within a second what is new."""
    assert isinstance(world.clock, VirtualClock)
    (last,) = await opened(world, "/v1/apps?watch=true", OWNER)
    await world.made("/v1/apps", {"name": "new"})
    await relay(world.control)
    await world.clock.advance(1)
    assert len(last.events) == 2
    await last.leave()


async def test_watches_that_are_left_hold_up_none_that_come_next(world: World) -> None:
    many = await opened(world, "/v1/apps?watch=true", *[OWNER] * MANY)
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(10)
    await asyncio.gather(*(listener.leave() for listener in many))
    await is_prompt(world)


async def test_many_waits_of_an_organization_look_in_turn_and_end_in_time(world: World) -> None:
    await world.made("/v1/volumes", {"name": "data", "size": "1gb"})
    path = "/v1/volumes/data/wait?state=never&timeout="
    assert isinstance(world.clock, VirtualClock)
    waits = [asyncio.ensure_future(world.get(f"{path}60")) for _ in range(MANY)]
    await world.clock.advance(10)
    short = asyncio.ensure_future(world.get(f"{path}2"))
    await world.clock.advance(2)
    assert short.done()
    assert not any(wait.done() for wait in waits)
    await world.call("DELETE", "/v1/volumes/data")
    await world.clock.advance(1)
    assert sum(wait.done() for wait in waits) <= LOOKS_PER_S + 1
    await world.clock.advance(MANY / LOOKS_PER_S)
    assert all(wait.done() for wait in waits)


async def test_waits_that_end_before_their_turn_hold_up_none_that_come_next(world: World) -> None:
    await world.made("/v1/volumes", {"name": "data", "size": "1gb"})
    assert isinstance(world.clock, VirtualClock)
    for _ in range(MANY):
        await world.clock.run(world.get("/v1/volumes/data/wait?state=never&timeout=0.01"))
    await is_prompt(world)


async def test_no_watch_waits_for_its_turn_for_long(world: World) -> None:
    count = int(LONGEST_TURN_S * LOOKS_PER_S) + MANY
    bounded(world, of_principal=count + 1, of_organization=count)
    many = await opened(world, "/v1/apps?watch=true", *[OWNER] * count)
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(60)
    await world.made("/v1/apps", {"name": "new"})
    await relay(world.control)
    await world.clock.advance(LONGEST_TURN_S + 1)
    assert all(len(listener.events) == 2 for listener in many)
    await asyncio.gather(*(listener.leave() for listener in many))


async def test_waits_for_a_turn_end_when_the_server_stops(world: World) -> None:
    await world.made("/v1/volumes", {"name": "data", "size": "1gb"})
    assert isinstance(world.clock, VirtualClock)
    waits = [asyncio.ensure_future(world.get("/v1/volumes/data/wait?state=never&timeout=60")) for _ in range(MANY)]
    await world.clock.advance(1.5)
    world.app.state.context.stopping.set()
    await world.clock.advance(1)
    assert all(wait.done() for wait in waits)
