"""What a command's socket carries when one of its two ways is over before the other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect

from shellwego.api.rest.routes import sockets
from shellwego.core.errors import UnavailableError


class Ended:
    """The stream of a command that is over: its output may be read to the end, and it takes no more input."""

    def __init__(self, *output: bytes) -> None:
        self._output = list(output)

    async def receive(self) -> bytes:
        await asyncio.sleep(0)
        return self._output.pop(0) if self._output else b""

    async def send(self, data: bytes) -> None:
        raise UnavailableError("stream-closed", "the node has ended the stream")

    async def aclose(self) -> None:
        pass


def socket_of(got: list[bytes], *sent: dict[str, Any]) -> WebSocket:
    """A client that sends these messages, and then listens."""
    waiting = list(sent)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Any) -> None:
        got.append(message.get("bytes", b""))

    made = WebSocket({"type": "websocket", "path": "/", "headers": [], "query_string": b""}, receive, send)
    made.client_state = made.application_state = made.client_state.CONNECTED
    return made


async def test_input_that_nobody_reads_any_more_takes_no_output_along() -> None:
    got: list[bytes] = []
    stream, socket = Ended(b"one", b"two"), socket_of(got, *({"type": "websocket.receive", "bytes": b"more"},) * 3)
    reading = asyncio.ensure_future(sockets._from_client(socket, stream))
    await sockets._to_client(socket, stream)
    assert not reading.done(), "who has ended takes no input, and tells so by its output"
    reading.cancel()
    assert got == [b"one", b"two"]


async def test_a_client_that_leaves_ends_it() -> None:
    left = {"type": "websocket.disconnect", "code": 1001}
    with pytest.raises(WebSocketDisconnect):
        await sockets._from_client(socket_of([], left), Ended())
