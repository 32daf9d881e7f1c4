"""How the server takes connections that come faster than it looks for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from shellwego.api.origins import Origins
from shellwego.api.server import ApiServer
from tests.api.api_world import World
from tests.waiting import eventually

pytestmark = pytest.mark.real

COUNT = 150


class TurnsOfEntry(Origins):
    """Remembers in which turn of the loop each connection came in."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[int] = []
        self.all_in = asyncio.Event()
        self._turn = 0

    def enter(self, address: str) -> Callable[[], None] | None:
        self.turns.append(self._turn)
        if len(self.turns) == COUNT:
            self.all_in.set()
        return super().enter(address)

    async def count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self._turn += 1


async def test_who_comes_together_is_let_in_together_and_a_flood_leaves_room_for_the_rest(world: World) -> None:
    origins = TurnsOfEntry()
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=COUNT))
        for _ in range(COUNT):
            held.enter_context(socket.create_connection(listener.getsockname(), timeout=5))
        tasks = [
            asyncio.ensure_future(ApiServer(world.app, listener, origins=origins).run()),
            asyncio.ensure_future(origins.count()),
        ]
        await asyncio.wait_for(origins.all_in.wait(), 30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(Counter(origins.turns).values()) == [22, 64, 64]


@contextlib.contextmanager
def no_descriptor_free() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_who_waits_for_want_of_descriptors_is_told_of_and_let_in_when_there_are_some(world: World) -> None:
    origins = TurnsOfEntry()
    with socket.create_server(("127.0.0.1", 0)) as listener, capture_logs() as logs, socket.socket() as late:
        running = asyncio.ensure_future(ApiServer(world.app, listener, origins=origins).run())
        with socket.create_connection(listener.getsockname(), timeout=5):
            await eventually(lambda: len(origins.turns) == 1, "the first connection")
            with no_descriptor_free():
                late.connect(listener.getsockname())
                await eventually(lambda: [line for line in logs if line["log_level"] == "warning"], "a line of the log")
            await eventually(lambda: len(origins.turns) == 2, "the connection that waited")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["api.connections_wait"]
