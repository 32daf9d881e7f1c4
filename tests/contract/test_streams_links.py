"""Links: what a network, a restart or a hostile node does to them, and what their bounds hold."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from shellwego.api.uplink import server
from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.plans import Rate
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.streams import mux
from shellwego.drivers.streams.dial import WebSocketDialler
from shellwego.drivers.streams.dialled import DialledListener, DialledStreams
from shellwego.drivers.streams.mux import Beat, Link
from shellwego.ports.streams import DuplexStream, StreamKind, StreamRequest
from shellwego.wire import links, subjects
from shellwego.wire.codec import encode
from shellwego.wire.links import INITIAL_CREDIT, Frame, FrameError, FrameKind, pack, unpack
from tests.contract.node_port import Port, Rig
from tests.contract.streams_contract import NODE, REQUEST, echo, read_all

QUICK = Beat(every_s=0.05, silent=3)
SLOW = Beat(every_s=1000)
"""Nobody is given up for his silence."""


async def answered(port: Port, text: bytes = b"ping") -> None:
    """A stream to the node works."""
    stream = await port.streams.open(NODE, REQUEST)
    await stream.send(text)
    assert await stream.receive() == text
    await stream.aclose()


async def test_a_thousand_streams_at_once(rig: Rig) -> None:
    port = rig.port()
    rig.link(rig.identities.node(), port.url)
    await port.linked(NODE)

    async def talk(number: int) -> None:
        stream = await port.streams.open(NODE, REQUEST)
        sent = os.urandom(1000) + str(number).encode()
        await stream.send(sent)
        await stream.send_eof()
        assert await read_all(stream) == sent

    async with asyncio.timeout(60):
        await asyncio.gather(*(talk(number) for number in range(1000)))
    await answered(port)


async def test_more_streams_than_a_link_may_have_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "MAX_STREAMS", 3)
    port = rig.port()
    rig.link(rig.identities.node(), port.url)
    await port.linked(NODE)
    streams = [await port.streams.open(NODE, REQUEST) for _ in range(3)]
    with pytest.raises(UnavailableError) as caught:
        await port.streams.open(NODE, REQUEST)
    assert caught.value.code == "too-many-streams"
    await streams[0].aclose()
    await answered(port)


async def test_a_request_that_is_too_long_is_refused(rig: Rig) -> None:
    port = rig.port()
    rig.link(rig.identities.node(), port.url)
    await port.linked(NODE)
    with pytest.raises(InvalidError):
        await port.streams.open(
            NODE, StreamRequest(kind=StreamKind.EXEC, instance_id="ins_1", command=("x" * 300_000,))
        )
    await answered(port)


async def test_a_dead_link_is_noticed_by_both_sides_though_nobody_tells(rig: Rig) -> None:
    port = rig.port(beat=QUICK)
    wire = rig.wire(port)
    rig.link(rig.identities.node(), wire.url, beat=QUICK)
    await port.linked(NODE)
    stream = await port.streams.open(NODE, REQUEST)
    wire.freeze()
    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError):
            await stream.receive()
    with pytest.raises(UnavailableError):
        await port.streams.open(NODE, REQUEST)
    wire.heal()
    await port.linked(NODE)
    await answered(port)


def test_a_dead_link_is_noticed_within_five_seconds() -> None:
    """One beat is heard, then nothing: the next look still counts it."""
    assert Beat().every_s * (Beat().silent + 1) < 5.0


async def test_a_link_without_streams_stays_up(rig: Rig) -> None:
    port = rig.port(beat=QUICK)
    rig.link(rig.identities.node(), port.url, beat=QUICK)
    await port.linked(NODE)
    down = asyncio.ensure_future(port.linked(NODE, up=False))
    done, _ = await asyncio.wait([down], timeout=0.6)
    assert not done
    down.cancel()


async def test_a_node_comes_back_to_a_server_that_was_started_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops lets go of its links at once, however long it waits for its calls."""
    monkeypatch.setattr(server, "GRACE_S", 1000.0)
    port = rig.port(beat=SLOW)
    rig.link(rig.identities.node(), port.url, beat=SLOW)
    await port.linked(NODE)
    stream = await port.streams.open(NODE, REQUEST)
    async with asyncio.timeout(20):
        await port.stop()
    with pytest.raises(UnavailableError):
        await stream.receive()
    await port.linked(NODE, up=False)
    port.start()
    await port.linked(NODE)
    await answered(port)


async def test_a_node_has_a_link_to_each_server(rig: Rig) -> None:
    ports = [rig.port(), rig.port()]
    rig.link(rig.identities.node(), *(port.url for port in ports), "https://127.0.0.1:1")
    for port in ports:
        await port.linked(NODE)
        await answered(port)
    await ports[0].stop()
    await answered(ports[1])


async def test_a_new_link_of_a_node_takes_the_place_of_the_old(rig: Rig) -> None:
    port, credentials = rig.port(beat=SLOW), rig.identities.node()
    wire = rig.wire(port)
    rig.link(credentials, wire.url)
    await port.linked(NODE)
    old = await port.streams.open(NODE, REQUEST)
    wire.freeze()
    rig.link(credentials, port.url)
    async with asyncio.timeout(20):
        with pytest.raises(UnavailableError):
            await old.receive()
    await port.linked(NODE)
    await answered(port)


class Mute:
    """A connection on which nothing is said, and that takes a moment to close."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def send(self, message: bytes) -> None:
        """Nobody listens."""

    async def receive(self) -> bytes:
        await self.closed.wait()
        raise ConnectionError("closed")

    async def close(self) -> None:
        await asyncio.sleep(0.01)
        self.closed.set()


async def test_of_links_that_come_at_once_one_is_left() -> None:
    streams, sockets = DialledStreams(SLOW), [Mute() for _ in range(4)]

    async def nothing() -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    carried = []
    for batch in (sockets[:1], sockets[1:]):
        carried += [asyncio.ensure_future(streams.carry(NODE, socket, nothing())) for socket in batch]
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.wait(carried, return_when=asyncio.FIRST_COMPLETED)
        while sum(not socket.closed.is_set() for socket in sockets) > 1:  # noqa: ASYNC110 - they tell nobody
            await asyncio.sleep(0.005)
    assert not sockets[-1].closed.is_set()
    await streams.cut(NODE)
    await asyncio.gather(*carried)


async def soon(queue: asyncio.Queue[str]) -> str:
    """The next of a queue, which comes."""
    async with asyncio.timeout(20):
        return await queue.get()


class TestHints:
    async def heard(self, rig: Rig, bus: MemoryBus) -> asyncio.Queue[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        began = asyncio.Event()

        async def listen() -> None:
            async with bus.subscribe(">") as hints:
                began.set()
                async for hint in hints:
                    queue.put_nowait(hint.subject)

        rig.links.append(asyncio.ensure_future(listen()))
        await began.wait()
        return queue

    async def test_a_node_hears_what_concerns_it_and_nothing_else(self, rig: Rig) -> None:
        port, bus = rig.port(), MemoryBus()
        heard = await self.heard(rig, bus)
        rig.link(rig.identities.node(), port.url, hints=bus)
        assert await soon(heard) == subjects.assignments(NODE), "what was said before the link is made up for"
        for subject in ("routes", "app.app_1", subjects.assignments("node_2"), subjects.assignments(NODE)):
            await port.bus.publish(subject, b"a payload carries nothing")
        assert await soon(heard) == subjects.assignments(NODE)
        assert heard.empty()

    async def test_an_edge_hears_of_routes_and_serves_no_streams(self, rig: Rig) -> None:
        port, bus = rig.port(), MemoryBus()
        heard = await self.heard(rig, bus)
        credentials = rig.identities.edge()
        listener = DialledListener(lambda: [port.url], WebSocketDialler(lambda: credentials), bus)
        rig.links.append(asyncio.ensure_future(listener.follow()))
        assert await soon(heard) == subjects.ROUTES
        await port.bus.publish(subjects.assignments(NODE))
        await port.bus.publish(subjects.ROUTES)
        assert await soon(heard) == subjects.ROUTES
        stream = await port.streams.open("edg_1", REQUEST)
        with pytest.raises(UnavailableError):
            await stream.receive()

    async def test_what_a_link_missed_is_made_up_for_when_it_is_back(self, rig: Rig) -> None:
        port, bus = rig.port(), MemoryBus()
        heard = await self.heard(rig, bus)
        rig.link(rig.identities.node(), port.url, hints=bus)
        assert await soon(heard) == subjects.assignments(NODE)
        await port.stop()
        port.start()
        assert await soon(heard) == subjects.assignments(NODE)

    async def test_servers_that_come_get_a_link_and_those_that_go_are_left(self, rig: Rig) -> None:
        first, other = rig.port(), rig.port()
        credentials, urls = rig.identities.node(), [first.url]
        listener = DialledListener(lambda: urls, WebSocketDialler(lambda: credentials), MemoryBus())
        rig.links.append(asyncio.ensure_future(listener.serve("", echo)))
        await first.linked(NODE)
        urls.append(other.url)
        await other.linked(NODE)
        assert first.streams.linked(NODE), "the one before stays"
        del urls[0]
        await first.linked(NODE, up=False)
        assert other.streams.linked(NODE)


OPEN_1 = Frame(FrameKind.OPEN, 1, encode(REQUEST))


class TestAHostileNode:
    """It has a key of this platform, and says what it likes."""

    @pytest.fixture
    async def port(self, rig: Rig) -> Port:
        port = rig.port(beat=SLOW)
        rig.link(rig.identities.node("node_2", "two"), port.url)
        await port.linked("node_2")
        return port

    @contextlib.asynccontextmanager
    async def linked(self, rig: Rig, port: Port) -> AsyncIterator[links.FrameSocket]:
        credentials = rig.identities.node()
        async with WebSocketDialler(lambda: credentials)(port.url) as socket:
            await port.linked(NODE)
            yield socket

    async def loses_its_link(self, port: Port) -> None:
        await port.linked(NODE, up=False)
        stream = await port.streams.open("node_2", REQUEST)
        await stream.send(b"others go on")
        assert await stream.receive() == b"others go on"

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"\x01",
            b"\xff" * 5,
            pack(OPEN_1),
            pack(Frame(FrameKind.HINT, 0, b"routes")),
            pack(Frame(FrameKind.DATA, 7, b"of a stream that nobody opened")),
            pack(Frame(FrameKind.BEAT, 0, b"with a payload")),
            bytes(links.MAX_FRAME * 2),
        ],
    )
    async def test_that_breaks_the_rules_loses_its_link(self, rig: Rig, port: Port, message: bytes) -> None:
        async with self.linked(rig, port) as socket:
            with contextlib.suppress(ConnectionError):
                await socket.send(message)
            await self.loses_its_link(port)

    @pytest.mark.parametrize(
        "frames",
        [
            [Frame(FrameKind.DATA, 1, bytes(links.MAX_PIECE))] * 2,
            [Frame(FrameKind.DATA, 1, b"")],
            [Frame(FrameKind.EOF, 1), Frame(FrameKind.DATA, 1, b"after the end")],
            [Frame(FrameKind.EOF, 1)] * 2,
            [Frame(FrameKind.CREDIT, 1, links.credit(1 << 31))],
            [Frame(FrameKind.CREDIT, 1, b"")],
            [Frame(FrameKind.OPEN, 1, b"")],
        ],
    )
    async def test_that_breaks_a_streams_rules_loses_its_link(self, rig: Rig, port: Port, frames: list[Frame]) -> None:
        async with self.linked(rig, port) as socket:
            stream = await port.streams.open(NODE, REQUEST)
            for frame in frames:
                await socket.send(pack(frame))
            await self.loses_its_link(port)
            with pytest.raises(UnavailableError):
                await stream.receive()

    @pytest.mark.parametrize(
        "frame", [Frame(FrameKind.BEAT), Frame(FrameKind.CREDIT, 1, links.credit(1)), Frame(FrameKind.DATA, 1, b"x")]
    )
    async def test_that_floods_loses_its_link(
        self, rig: Rig, port: Port, frame: Frame, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mux, "MAX_NOISE", 100)
        async with self.linked(rig, port) as socket:
            stream = await port.streams.open(NODE, REQUEST)
            if frame.kind is FrameKind.DATA:
                await stream.aclose()  # what comes for it from now on serves nothing
            with contextlib.suppress(ConnectionError):
                for _ in range(200):
                    await socket.send(pack(frame))
            await self.loses_its_link(port)

    async def test_that_sends_text_loses_its_link(self, rig: Rig, port: Port) -> None:
        async with self.linked(rig, port) as socket:
            await socket._socket.send_str("hello")  # type: ignore[attr-defined]
            await self.loses_its_link(port)

    @pytest.mark.parametrize("word", ["ping", "pong"])
    async def test_that_pings_below_the_frames_loses_its_link(self, rig: Rig, port: Port, word: str) -> None:
        """What keeps a WebSocket up serves nothing here, and a flood of it would be counted nowhere."""
        async with self.linked(rig, port) as socket:
            await getattr(socket._socket, word)()  # type: ignore[attr-defined]
            await self.loses_its_link(port)

    async def test_that_dials_without_end_is_turned_away(
        self, rig: Rig, port: Port, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "_LINKS", Rate(per_minute=1, burst=1))
        credentials = rig.identities.node()
        dialler = WebSocketDialler(lambda: credentials)
        async with dialler(port.url):
            with pytest.raises(UnavailableError, match="429"):
                async with dialler(port.url):
                    pass

    async def test_that_takes_nothing_has_nothing_more_opened(self, rig: Rig, port: Port) -> None:
        """Whoever opens a stream, and lets go of it, waits for nobody; so what is told of it must not pile up."""
        large = StreamRequest(kind=StreamKind.EXEC, instance_id="ins_1", command=("x" * 200_000,))
        async with self.linked(rig, port) as socket:
            cast("Any", socket)._socket._response.connection.transport.pause_reading()

            async def open_and_let_go() -> None:
                for _ in range(1000):
                    await (await port.streams.open(NODE, large)).aclose()
                    await asyncio.sleep(0)

            with pytest.raises(UnavailableError, match="takes nothing"):
                await open_and_let_go()
        await self.loses_its_link(port)

    async def test_that_never_reads_is_sent_no_more_than_its_credit(self, rig: Rig, port: Port) -> None:
        async with self.linked(rig, port):
            stream = await port.streams.open(NODE, REQUEST)
            await stream.send(bytes(INITIAL_CREDIT))
            sending = asyncio.ensure_future(stream.send(b"x"))
            done, _ = await asyncio.wait([sending], timeout=0.2)
            assert not done
            await stream.aclose()
            with pytest.raises(UnavailableError):
                await sending


async def test_streams_that_stall_are_held_within_the_links_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each got a large window while there were bytes to spare; the rest go on with the first credit."""
    monkeypatch.setattr(mux, "SPARE", 4 * mux.WINDOW)
    sent: dict[str, int] = {}

    async def flood(request: StreamRequest, stream: DuplexStream) -> None:
        sent[request.instance_id] = 0
        while True:
            await stream.send(bytes(4096))
            sent[request.instance_id] += 4096

    port, credentials = rig.port(), rig.identities.node()

    async def serve() -> None:
        async with WebSocketDialler(lambda: credentials)(port.url) as socket:
            await Link(socket, handler=flood).run()

    rig.links.append(asyncio.ensure_future(serve()))
    await port.linked(NODE)
    streams = [
        await port.streams.open(NODE, StreamRequest(kind=StreamKind.LOGS, instance_id=str(number)))
        for number in range(20)
    ]
    read = 0
    async with asyncio.timeout(20):
        for stream in streams:
            for _ in range(8):
                read += len(await stream.receive())
    before = -1
    while sum(sent.values()) != before:
        before = sum(sent.values())
        await asyncio.sleep(0.1)
    assert before - read <= 20 * INITIAL_CREDIT + 4 * mux.WINDOW + 20 * 4096


async def test_a_stream_that_ends_gives_its_bytes_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are spare bytes for one large window, and streams that come one after the other each get it."""
    monkeypatch.setattr(mux, "SPARE", mux.WINDOW)
    port = rig.port()
    rig.link(rig.identities.node(), port.url)
    await port.linked(NODE)
    link = port.streams._links[NODE]
    for _ in range(3):
        stream = await port.streams.open(NODE, REQUEST)
        sending = asyncio.ensure_future(stream.send(bytes(1 << 20)))
        read = 0
        while read < 1 << 20:
            read += len(await stream.receive())
        await sending
        assert link._spare < mux.WINDOW, "the stream has some"
        await stream.aclose()
        assert link._spare == mux.WINDOW


class TestFrames:
    @pytest.mark.parametrize("frame", [OPEN_1, Frame(FrameKind.DATA, 1 << 31, b"x"), Frame(FrameKind.BEAT)])
    def test_arrive_as_they_were_sent(self, frame: Frame) -> None:
        assert unpack(pack(frame)) == frame

    def test_have_a_limit_each(self) -> None:
        with pytest.raises(FrameError):
            unpack(pack(Frame(FrameKind.DATA, 1, bytes(links.MAX_PIECE + 1))))
        with pytest.raises(FrameError):
            unpack(pack(Frame(FrameKind.RESET, 1, bytes(10_000))))


async def test_a_request_of_a_kind_that_the_node_does_not_know_yet_is_refused_alone(rig: Rig) -> None:
    port = rig.port()
    rig.link(rig.identities.node(), port.url)
    await port.linked(NODE)
    link = port.streams._links[NODE]
    newer = mux.Stream(link, link._last + 1)
    link._last += 1
    link._streams[newer.number] = newer
    link.post(Frame(FrameKind.OPEN, newer.number, encode({"kind": "of-2028", "instance_id": "ins_1"})))
    with pytest.raises(UnavailableError, match="does not understand"):
        await newer.receive()
    await answered(port)
