"""Streams over links that nodes and edges dial, so that a node behind NAT is reached as any other.

`DialledStreams` is a server's end: links come to it, and it opens streams on them. `DialledListener` is the end of a node or
edge: it keeps a link to each server it is told, serves the streams, and hands on the hints that come. A node hears of the
same thing from each server; hints carry no truth, so that costs a look.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol

import structlog

from shellwego.core.errors import ShellWeGoError, UnavailableError
from shellwego.core.troubles import Troubles
from shellwego.drivers.streams.mux import Beat, Link, Stream
from shellwego.ports.streams import DuplexStream, StreamHandler, StreamRequest
from shellwego.wire.links import FrameSocket

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
FOLLOW_S = 0.5
"""So often it is looked whether servers came or went."""
_LASTING_S = 10.0
"""A link that lived so long was a good one: the next try comes soon."""

_log = structlog.get_logger(__name__)

Dial = Callable[[str], AbstractAsyncContextManager[FrameSocket]]
"""Connects to the server at a URL; raises `ShellWeGoError` where that fails."""


class HintSink(Protocol):
    """Who takes the hints that servers push."""

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """Take one; never waits for whom it concerns."""


class DialledStreams:
    """See `ports.streams.Streams` and `wire.links.Links`."""

    def __init__(self, beat: Beat | None = None) -> None:
        self._beat = beat
        self._links: dict[str, Link] = {}

    async def open(self, node_id: str, request: StreamRequest) -> Stream:
        link = self._links.get(node_id)
        if link is None or link.over:
            raise UnavailableError("node-unreachable", f"node {node_id} cannot be reached for streams")
        return link.open(request)

    def linked(self, peer_id: str) -> bool:
        """Whether the node or edge has a link to this server."""
        link = self._links.get(peer_id)
        return link is not None and not link.over

    async def carry(self, peer_id: str, socket: FrameSocket, hints: AsyncIterator[str]) -> None:
        link = Link(socket, beat=self._beat)
        former, self._links[peer_id] = self._links.get(peer_id), link
        reason = "it was ended here"
        try:
            if former is not None:
                await former.close()
            _log.info("link.up", peer=peer_id)
            reason = await link.run(hints)
        finally:
            if self._links.get(peer_id) is link:
                del self._links[peer_id]
            _log.info("link.down", peer=peer_id, reason=reason)

    async def cut(self, peer_id: str) -> None:
        """End the link to a node or edge, if there is one; it will dial again."""
        link = self._links.pop(peer_id, None)
        if link is not None:
            await link.close()


class DialledListener:
    """See `ports.streams.StreamListener`. Hints that come are given to `hints`, usually a bus of this process alone."""

    def __init__(
        self,
        servers: Callable[[], Sequence[str]],
        dial: Dial,
        hints: HintSink,
        *,
        beat: Beat | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`servers` are URLs, and may change at any time; `jitter` gives a random number from 0 up to 1."""
        self._servers = servers
        self._dial = dial
        self._hints = hints
        self._beat = beat
        self._jitter = jitter
        self._troubles = Troubles()

    async def serve(self, node_id: str, handler: StreamHandler) -> None:
        """The servers know by its key which node it is. One that is not told any more is left."""
        kept: dict[str, asyncio.Task[NoReturn]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                wanted = tuple(self._servers())
                for server in kept.keys() - set(wanted):
                    kept.pop(server).cancel()
                for server in wanted:
                    if server not in kept:
                        kept[server] = group.create_task(self._keep(server, handler))
                await asyncio.sleep(FOLLOW_S)

    async def follow(self) -> None:
        """Take hints and no streams, until cancelled: what an edge does."""
        await self.serve("", _serve_nothing)

    async def _keep(self, server: str, handler: StreamHandler) -> NoReturn:
        now = asyncio.get_running_loop().time
        failures = 0
        while True:
            began = now()
            try:
                reason = await self._link(server, handler)
            except ShellWeGoError as error:
                reason = error.message
            except Exception as error:  # noqa: BLE001 - a defect must not leave the node without its links
                reason = repr(error)
                _log.exception("link.failed", server=server)
            failures = 0 if now() - began >= _LASTING_S else failures + 1
            if trouble := self._troubles.failed(server, reason, now()):
                _log.warning("link.lost", server=server, reason=reason, **trouble.fields)
            longest = min(FIRST_PAUSE_S * 2.0**failures, LONGEST_PAUSE_S)
            await asyncio.sleep(longest * (0.5 + self._jitter() / 2))

    async def _link(self, server: str, handler: StreamHandler) -> str:
        arrived: asyncio.Queue[str] = asyncio.Queue()
        async with self._dial(server) as socket:
            publishing = asyncio.create_task(self._publish(arrived))
            try:
                return await Link(socket, handler=handler, on_hint=arrived.put_nowait, beat=self._beat).run()
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)

    async def _publish(self, arrived: asyncio.Queue[str]) -> NoReturn:
        while True:
            await self._hints.publish(await arrived.get())


async def _serve_nothing(_request: StreamRequest, _stream: DuplexStream) -> None:
    raise UnavailableError("stream-refused", "an edge serves no streams")
