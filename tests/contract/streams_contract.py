"""What every pair of stream drivers must do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest

from shellwego.core.errors import UnavailableError
from shellwego.ports.streams import DuplexStream, StreamHandler, StreamKind, StreamListener, StreamRequest, Streams
from tests.bytes import first_difference

NODE = "node_1"
REQUEST = StreamRequest(
    kind=StreamKind.EXEC, instance_id="ins_1", command=("sh", "-c", ""), env={"A": "é"}, rows=24, columns=80, since=1.5
)
MUCH = 4 * 1024 * 1024
"""More than any window."""


@dataclass(frozen=True)
class Joined:
    streams: Streams
    listener: StreamListener
    cut: Callable[[str], Awaitable[None]]
    """Break the connection to a node, as a network does."""
    reached: Callable[[str], Awaitable[None]] = lambda _: asyncio.sleep(0)
    """Return when the node that serves can be reached; in one process that is as soon as its task has begun."""


async def read_all(stream: DuplexStream) -> bytes:
    """Everything to the end."""
    received = bytearray()
    while data := await stream.receive():
        received += data
    return bytes(received)


@asynccontextmanager
async def serving(joined: Joined, handler: StreamHandler, node_id: str = NODE) -> AsyncIterator[asyncio.Task[None]]:
    """A node that serves its streams with this handler."""
    task = asyncio.ensure_future(joined.listener.serve(node_id, handler))
    await joined.reached(node_id)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def echo(_request: StreamRequest, stream: DuplexStream) -> None:
    while data := await stream.receive():
        await stream.send(data)
    await stream.send_eof()


class StreamsContract:
    """Inherit, and give a fixture `joined`."""

    deadline_s = 10.0

    async def test_the_request_arrives_as_it_was_given(self, joined: Joined) -> None:
        got: list[StreamRequest] = []

        async def note(request: StreamRequest, stream: DuplexStream) -> None:
            got.append(request)

        async with serving(joined, note), asyncio.timeout(self.deadline_s):
            assert await read_all(await joined.streams.open(NODE, REQUEST)) == b""
        assert got == [REQUEST]

    async def test_bytes_go_both_ways_at_once_and_arrive_whole(self, joined: Joined) -> None:
        sent = os.urandom(MUCH)

        async def send_all(stream: DuplexStream) -> None:
            for start in range(0, MUCH, 100_000):
                await stream.send(sent[start : start + 100_000])
            await stream.send_eof()

        async with serving(joined, echo), asyncio.timeout(self.deadline_s):
            stream = await joined.streams.open(NODE, REQUEST)
            received, _ = await asyncio.gather(read_all(stream), send_all(stream))
        assert first_difference(received, sent) is None

    async def test_a_piece_larger_than_any_window_passes(self, joined: Joined) -> None:
        async with serving(joined, echo), asyncio.timeout(self.deadline_s):
            stream = await joined.streams.open(NODE, REQUEST)
            sending = asyncio.ensure_future(stream.send(bytes(MUCH)))
            received = 0
            while received < MUCH:
                received += len(await stream.receive())
            await sending

    async def test_after_the_end_of_one_direction_the_other_goes_on(self, joined: Joined) -> None:
        async def answer_after_the_end(_request: StreamRequest, stream: DuplexStream) -> None:
            asked = await read_all(stream)
            await stream.send(b"you said " + asked)
            await stream.send_eof()

        async with serving(joined, answer_after_the_end), asyncio.timeout(self.deadline_s):
            stream = await joined.streams.open(NODE, REQUEST)
            await stream.send(b"hello")
            await stream.send_eof()
            assert await read_all(stream) == b"you said hello"

    async def test_what_a_handler_wrote_is_read_to_its_end_after_it_returned(self, joined: Joined) -> None:
        async def write_and_leave(_request: StreamRequest, stream: DuplexStream) -> None:
            await stream.send(b"x" * 50_000)

        async with serving(joined, write_and_leave), asyncio.timeout(self.deadline_s):
            stream = await joined.streams.open(NODE, REQUEST)
            await asyncio.sleep(0.01)
            assert len(await read_all(stream)) == 50_000
            assert await stream.receive() == b""
            with pytest.raises(UnavailableError):
                await stream.send(bytes(MUCH))

    async def test_a_handler_that_fails_is_not_mistaken_for_an_end(self, joined: Joined) -> None:
        async def fail(_request: StreamRequest, stream: DuplexStream) -> None:
            await stream.send(b"half")
            raise LookupError("a defect with a secret")

        async with serving(joined, fail), asyncio.timeout(self.deadline_s):
            with pytest.raises(UnavailableError) as caught:
                await read_all(await joined.streams.open(NODE, REQUEST))
        assert "secret" not in caught.value.message

    async def test_a_reader_that_stalls_stops_only_its_own_stream(self, joined: Joined) -> None:
        sent = 0

        async def flood(request: StreamRequest, stream: DuplexStream) -> None:
            nonlocal sent
            if request.instance_id == "ins_2":
                await echo(request, stream)
                return
            for _ in range(MUCH // 4096):
                await stream.send(bytes(4096))
                sent += 4096
            await stream.send_eof()

        async with serving(joined, flood), asyncio.timeout(self.deadline_s):
            stalled = await joined.streams.open(NODE, REQUEST)
            other = await joined.streams.open(NODE, StreamRequest(kind=StreamKind.EXEC, instance_id="ins_2"))
            for _ in range(200):
                await other.send(b"ping")
                assert await other.receive() == b"ping"
            assert sent <= MUCH // 2
            assert len(await read_all(stalled)) == MUCH

    async def test_a_client_that_cancels_ends_the_handler(self, joined: Joined) -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        async def wait_for_ever(_request: StreamRequest, stream: DuplexStream) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with serving(joined, wait_for_ever), asyncio.timeout(self.deadline_s):
            stream = await joined.streams.open(NODE, REQUEST)
            await began.wait()
            await stream.aclose()
            await stream.aclose()
            await ended.wait()
            with pytest.raises(UnavailableError):
                await stream.send(b"x")

    async def test_a_cut_link_is_told_to_both_sides(self, joined: Joined) -> None:
        began, told = asyncio.Event(), asyncio.Event()

        async def serve(_request: StreamRequest, stream: DuplexStream) -> None:
            began.set()
            try:
                await read_all(stream)
            except (UnavailableError, asyncio.CancelledError):
                told.set()
                raise

        async with serving(joined, serve), asyncio.timeout(self.deadline_s):
            stream = await joined.streams.open(NODE, REQUEST)
            reading = asyncio.ensure_future(stream.receive())
            await began.wait()
            await joined.cut(NODE)
            with pytest.raises(UnavailableError):
                await reading
            await told.wait()
            with pytest.raises(UnavailableError):
                await stream.send(b"x")

    async def test_a_cut_link_frees_a_writer_that_waits_for_room(self, joined: Joined) -> None:
        async def never_read(_request: StreamRequest, stream: DuplexStream) -> None:
            await asyncio.Event().wait()

        async with serving(joined, never_read), asyncio.timeout(self.deadline_s):
            stream = await joined.streams.open(NODE, REQUEST)
            writing = asyncio.ensure_future(stream.send(bytes(MUCH)))
            await asyncio.sleep(0.01)
            assert not writing.done()
            await joined.cut(NODE)
            with pytest.raises(UnavailableError):
                await writing

    async def test_a_node_that_nobody_serves_cannot_be_reached(self, joined: Joined) -> None:
        async with serving(joined, echo, "node_2"), asyncio.timeout(self.deadline_s):
            with pytest.raises(UnavailableError):
                await joined.streams.open(NODE, REQUEST)

    async def test_a_node_that_stops_serving_ends_its_streams(self, joined: Joined) -> None:
        async with asyncio.timeout(self.deadline_s):
            async with serving(joined, echo):
                stream = await joined.streams.open(NODE, REQUEST)
            with pytest.raises(UnavailableError):
                await stream.receive()
            with pytest.raises(UnavailableError):
                await joined.streams.open(NODE, REQUEST)
