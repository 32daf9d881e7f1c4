"""A WebSocket of aiohttp, of either side, as a connection that carries frames."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web

from shellwego.wire.links import MAX_FRAME

MAX_MESSAGE = MAX_FRAME + 64


class WebSocketFrames:
    """See `wire.links.FrameSocket`; `abort` ends the connection below without another word."""

    def __init__(
        self, socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse, abort: Callable[[], Awaitable[object]]
    ) -> None:
        self._socket = socket
        self._abort = abort

    async def send(self, message: bytes) -> None:
        try:
            await self._socket.send_bytes(message)
        except (RuntimeError, aiohttp.ClientError) as error:  # aiohttp's words for a socket that was closed here
            raise ConnectionError(str(error)) from None

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise ConnectionError(f"the link ended ({message.type.name.lower()})")
        data: bytes = message.data
        return data

    async def close(self) -> None:
        await self._abort()
