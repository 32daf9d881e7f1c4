"""What one client and one app may have of an edge's connections, with a real HAProxy on loopback; no VM runs here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import pytest

from tests.edge.rig import Answer, Client, Rig, backends, eventually, fresh_rig, route

pytestmark = pytest.mark.real

GREEDY, MODEST, BALANCER = "127.0.0.2", "127.0.0.3", "127.0.0.9"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with fresh_rig() as made:
        made.balancers = (BALANCER,)
        yield made


async def upgraded(client: Client, host: str = "hello.localhost") -> Answer:
    """The answer to a WebSocket's handshake."""
    return await client.raw(
        f"GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )


@asynccontextmanager
async def websockets(rig: Rig, count: int, source: str, host: str = "hello.localhost") -> AsyncIterator[None]:
    async with AsyncExitStack() as held:
        for _ in range(count):
            client = await held.enter_async_context(rig.client(host, source))
            assert (await upgraded(client, host)).status == 101
        yield


async def is_served(rig: Rig, source: str) -> bool:
    try:
        async with asyncio.timeout(5), rig.client(source=source) as client:
            return (await client.get()).status == 200
    except OSError:  # closed without a word
        return False


async def until(seen: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await seen():  # noqa: ASYNC110 - only another try tells
            await asyncio.sleep(0.01)


async def test_one_address_has_its_share_of_connections_and_others_theirs(rig: Rig) -> None:
    rig.connections_per_source = 3
    async with backends("a") as (a,), rig.run():
        await rig.serve(route(a.endpoint()))
        async with websockets(rig, 3, GREEDY):
            assert not await is_served(rig, GREEDY)
            assert await is_served(rig, MODEST)
            async with websockets(rig, 5, BALANCER):
                assert await is_served(rig, BALANCER)
        await until(lambda: is_served(rig, GREEDY))


async def test_a_connection_that_says_nothing_counts(rig: Rig) -> None:
    rig.connections_per_source = 2
    async with backends("a") as (a,), rig.run():
        await rig.serve(route(a.endpoint()))
        async with AsyncExitStack() as open_:

            async def refused() -> bool:
                """With one more that says nothing; the first may be with a worker that another came for."""
                silent = await open_.enter_async_context(rig.client(source=GREEDY))
                with suppress(OSError):
                    await silent.connection()
                return not await is_served(rig, GREEDY)

            await until(refused)
            assert await is_served(rig, MODEST)


async def test_one_app_has_its_share_and_another_is_reached(rig: Rig) -> None:
    rig.connections_per_app = 2
    async with backends("a", "b") as (a, b), rig.run(), rig.client(source=MODEST) as client:
        await rig.serve(route(a.endpoint(), app="greedy"), route(b.endpoint(), app="modest"))
        async with websockets(rig, 1, GREEDY, "greedy.localhost"), websockets(rig, 1, BALANCER, "greedy.localhost"):
            busy = await client.get(host="greedy.localhost")
            assert (busy.status, busy.error, busy.headers["retry-after"]) == (503, "app-busy", "5")
            assert (await client.get(host="modest.localhost")).text == "b"

        async def served() -> bool:
            return (await client.get(host="greedy.localhost")).status == 200

        await until(served)


async def test_what_is_open_is_kept_and_served_over_a_reload(rig: Rig) -> None:
    """What an old worker sends on to the new one is not of its client's share there: all of it goes over one way."""
    rig.connections_per_source = 2
    async with backends("a", "b") as (a, b), AsyncExitStack() as held:
        async with rig.run(keep=True):
            await rig.serve(route(a.endpoint()))
            old = [await held.enter_async_context(rig.client(source=GREEDY)) for _ in range(2)]
            assert [(await client.get()).text for client in old] == ["a", "a"]
        rig.timeouts = replace(rig.timeouts, hard_stop=61)
        async with rig.run():
            await rig.serve(route(b.endpoint()))
            await eventually(lambda: rig.control.last.open_sessions == {})
            slow = [client.get("/slow?0.5") for client in old]
            async with websockets(rig, 2, GREEDY):
                assert [answer.text for answer in await asyncio.gather(*slow)] == ["b", "b"]
                assert not await is_served(rig, GREEDY)
