"""What one tenant may have open at once: streams, waits and requests, of which others are to have theirs."""

from __future__ import annotations

import asyncio

import pytest

from shellwego.api.rest.shares import Shares
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import ADMIN, FOREIGN, VIEWER, World
from tests.api.listener import Listener, reach

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
