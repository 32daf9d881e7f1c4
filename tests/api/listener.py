"""Who listens to a stream of server-sent events of the API."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, MutableMapping
from typing import Any

from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import OWNER, World, http_scope


class Listener:
    """Reads a long answer of the API as a server would send it."""

    def __init__(self, world: World, path: str, token: str = OWNER, headers: dict[str, str] | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.status = 0
        self._buffer = b""
        self._leave = asyncio.Event()
        sent = {"authorization": f"Bearer {token}", **(headers or {})}
        self.task = asyncio.ensure_future(self._run(world, path, sent))

    async def _run(self, world: World, path: str, headers: dict[str, str]) -> None:
        scope = http_scope(path, headers, spec="2.4")

        async def receive() -> dict[str, Any]:
            await self._leave.wait()
            return {"type": "http.disconnect"}

        await world.app(scope, receive, self._send)

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self._leave.is_set():
            raise OSError("the client has left")
        self.status = message.get("status", self.status)
        self._buffer += message.get("body", b"")
        *whole, self._buffer = self._buffer.split(b"\n\n")
        for block in whole:
            fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if not line.startswith(":"))
            if fields:
                self.events.append({**fields, "data": json.loads(fields["data"])})

    async def leave(self) -> None:
        self._leave.set()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def reach(world: World, condition: Callable[[], bool]) -> None:
    assert isinstance(world.clock, VirtualClock)
    await world.clock.until(condition, timeout=60)
