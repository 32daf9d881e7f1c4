"""The streams' contract on the memory driver, and a wrong driver that it rejects."""

from __future__ import annotations

import asyncio

import pytest

from shellwego.core.errors import UnavailableError
from shellwego.drivers.streams.memory import WINDOW, MemoryStreams
from shellwego.ports.streams import DuplexStream, StreamHandler, StreamRequest
from tests.contract.streams_contract import NODE, REQUEST, Joined, StreamsContract, serving


class TestMemoryStreams(StreamsContract):
    @pytest.fixture
    def joined(self) -> Joined:
        streams = MemoryStreams()
        return Joined(streams, streams, streams.cut)


async def test_no_more_than_the_window_is_held_for_a_reader_that_stalls() -> None:
    streams = MemoryStreams()
    sent = 0

    async def flood(_request: StreamRequest, stream: DuplexStream) -> None:
        nonlocal sent
        while True:
            await stream.send(bytes(1024))
            sent += 1024

    async with serving(Joined(streams, streams, streams.cut), flood):
        stream = await streams.open(NODE, REQUEST)
        await asyncio.sleep(0.01)
        assert sent == WINDOW
        await stream.aclose()


class QueueStream:
    """Wrong: holds whatever is sent, and an end that was lost looks like an end."""

    def __init__(self, incoming: asyncio.Queue[bytes], outgoing: asyncio.Queue[bytes]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def send(self, data: bytes) -> None:
        self._outgoing.put_nowait(data)

    async def send_eof(self) -> None:
        self._outgoing.put_nowait(b"")

    async def receive(self) -> bytes:
        return await self._incoming.get()

    async def aclose(self) -> None:
        self._outgoing.put_nowait(b"")


class QueueStreams:
    def __init__(self) -> None:
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks: list[asyncio.Future[None]] = []

    async def serve(self, node_id: str, handler: StreamHandler) -> None:
        self._handlers[node_id] = handler
        await asyncio.Event().wait()

    async def open(self, node_id: str, request: StreamRequest) -> QueueStream:
        if node_id not in self._handlers:
            raise UnavailableError("node-unreachable", "nobody serves it")
        up: asyncio.Queue[bytes] = asyncio.Queue()
        down: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks.append(asyncio.ensure_future(self._run(self._handlers[node_id], request, QueueStream(up, down))))
        return QueueStream(down, up)

    async def _run(self, handler: StreamHandler, request: StreamRequest, stream: QueueStream) -> None:
        try:
            await handler(request, stream)
        except LookupError:
            pass
        finally:
            await stream.send_eof()

    async def cut(self, node_id: str) -> None:
        pass


class TestTheContractRejectsWrongStreams:
    def joined(self) -> Joined:
        streams = QueueStreams()
        return Joined(streams, streams, streams.cut)

    async def test_that_hold_whatever_is_sent(self) -> None:
        with pytest.raises(AssertionError):
            await StreamsContract().test_a_reader_that_stalls_stops_only_its_own_stream(self.joined())

    async def test_that_take_a_failure_for_an_end(self) -> None:
        with pytest.raises(pytest.fail.Exception):
            await StreamsContract().test_a_handler_that_fails_is_not_mistaken_for_an_end(self.joined())
