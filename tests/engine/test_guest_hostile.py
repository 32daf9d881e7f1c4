"""The host's side against guests that break the protocol: an error with a name, bounded memory, nobody waits for ever."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from plasmavmc.errors import GuestError, UnavailableError
from plasmavmc.guest.api import ExecExit, ExecOutput, GuestCard, GuestHello, GuestOutput
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.guest.framing import MAGIC, FrameType, encode, put_field
from plasmavmc.guest.messages import Tag
from plasmavmc.guest.opening import open_channel, open_channel_over
from plasmavmc.guest.session import SocketExecSession
from plasmavmc.stopping import Stop
from plasmavmc.types import ExecSpec, LogStream

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HELLO = encode(FrameType.HELLO, b"\x01\0\0\0" + bytes(8))
CARD = GuestCard(1, b"e" * 64)
DEADLINE_S = 5.0


@asynccontextmanager
async def guest_that(behaves: Behaviour, directory: Path) -> AsyncIterator[Path]:
    """A guest that answers the sync and then does as told."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            nonce = (await reader.readexactly(32))[16:]
            writer.write(MAGIC + nonce + HELLO)
            await behaves(reader, writer)
            await done.wait()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, directory / "ctl")
    try:
        yield directory / "ctl"
    finally:
        done.set()
        server.close()
        await server.wait_closed()


async def error_of(behaves: Behaviour, directory: Path) -> GuestError:
    """The error that the reader of events gets."""
    async with guest_that(behaves, directory) as path, asyncio.timeout(DEADLINE_S):
        channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)
        try:
            with pytest.raises(GuestError) as caught:
                async for _ in channel.events():
                    pass
            return caught.value
        finally:
            await channel.aclose()


def saying(*frames: bytes) -> Behaviour:
    async def behave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for frame in frames:
            writer.write(frame)
            await writer.drain()

    return behave


OUTPUT = encode(FrameType.OUTPUT, bytes(8) + b"\x01" + b"x" * 16000)


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff" * 100],
        [bytes(100)],
        [encode(FrameType.READY, b"")],
        [encode(FrameType.EXITED, b"12")],
        [encode(FrameType.OUTPUT, bytes(8) + b"\x09data")],
        [encode(FrameType.OUTPUT, b"\xff" * 8 + b"\x01data")],
        [encode(FrameType.FAILED, b"\x20\0\xff\xff\xff\xff")],
        [encode(FrameType.EXEC_OUTPUT, b"\x01data", stream=9)],
        [encode(FrameType.EXEC_EXIT, b"\0\0\0\0", stream=9)],
    ],
)
async def test_a_guest_that_breaks_the_protocol_is_cut_off_with_a_named_error(
    frames: list[bytes], tmp_path: Path
) -> None:
    assert (await error_of(saying(*frames), tmp_path)).code == "bad-frame"


async def unread(path: Path) -> SocketGuestChannel:
    """A channel whose events nobody reads, after the guest has misbehaved."""
    channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S):
        while channel._error is None:  # noqa: ASYNC110 - the reader ends by itself
            await asyncio.sleep(0.005)
    return channel


@pytest.mark.parametrize(
    "frame", [OUTPUT, encode(FrameType.OUTPUT, bytes(8) + b"\x01"), encode(FrameType.READY, bytes(4))]
)
async def test_what_nobody_reads_is_bounded_whatever_the_guest_sends(frame: bytes, tmp_path: Path) -> None:
    async with guest_that(saying(*[frame] * 100_000), tmp_path) as path:
        channel = await unread(path)
        assert sum(cost for _, cost in channel._events) <= 256 * 1024
        assert len(channel._events) < 13_000
        await channel.aclose()


def frame_of(kind: int, payload: bytes) -> bytes:
    """A frame of any type, also of one that we do not know."""
    checked = struct.pack("<IHH", len(payload), kind, 0)
    return checked + struct.pack("<I", zlib.crc32(checked + payload)) + payload


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (FrameType.READY, bytes(4)),
        (9_999, bytes(4)),
        (FrameType.FROZEN, b""),
        (FrameType.THAWED, b""),
        (FrameType.ORDERED, b""),
    ],
    ids=["a word repeated", "words without meaning", "holding", "letting go", "orders"],
)
async def test_a_flood_that_no_credit_holds_back_is_cut_off_even_where_all_is_read(
    kind: int, payload: bytes, tmp_path: Path
) -> None:
    """Each frame takes time of the event loop, which all guests share with the API."""
    frames = frame_of(kind, payload) * 16

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(frames)
            await writer.drain()
            await asyncio.sleep(0)

    assert (await error_of(flood, tmp_path)).code == "bad-frame"


async def test_room_for_nothing_is_no_credit() -> None:
    """Else a running command could be told of it without end."""

    async def drained() -> None:
        pass

    with pytest.raises(GuestError):
        SocketExecSession(1, lambda data: None, drained).heard_credit(0)


async def test_what_was_said_before_the_breach_is_still_told(tmp_path: Path) -> None:
    async with guest_that(saying(OUTPUT, b"\xff" * 100), tmp_path) as path:
        channel = await unread(path)
        events = channel.events()
        assert isinstance(await anext(events), GuestHello)
        assert isinstance(await anext(events), GuestOutput)
        with pytest.raises(GuestError):
            await anext(events)
        await channel.aclose()


async def test_a_guest_that_grants_more_input_than_was_sent_is_cut_off(tmp_path: Path) -> None:
    started = encode(FrameType.EXEC_STARTED, bytes(4), stream=1)
    greedy = encode(FrameType.CREDIT, b"\xff\xff\xff\xff", stream=1)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)
        writer.write(started + greedy)

    async with guest_that(behave, tmp_path) as path, asyncio.timeout(DEADLINE_S):
        channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)
        session = await channel.exec(ExecSpec(("cat",)))
        with pytest.raises(GuestError):
            async for _ in session.output():
                pass
        await channel.aclose()


@pytest.mark.parametrize("end", [encode(FrameType.EXITED, bytes(5)), encode(FrameType.FAILED)])
async def test_the_end_is_answered_so_that_the_guest_need_not_wait(end: bytes, tmp_path: Path) -> None:
    answered = asyncio.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(end)
        seen = encode(FrameType.SEEN_END)
        if await reader.readexactly(len(seen)) == seen:
            answered.set()

    async with guest_that(behave, tmp_path) as path, asyncio.timeout(DEADLINE_S):
        channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)
        await answered.wait()
        await channel.aclose()


async def test_a_refusal_is_told_in_printable_words(tmp_path: Path) -> None:
    reason = put_field(Tag.CODE, b"too-many") + put_field(Tag.MESSAGE, b"no\x1b[31m" + b"x" * 1000)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)
        writer.write(encode(FrameType.EXEC_REFUSED, reason, stream=1))

    async with guest_that(behave, tmp_path) as path, asyncio.timeout(DEADLINE_S):
        channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)
        with pytest.raises(GuestError) as refused:
            await channel.exec(ExecSpec(("cat",)))
        assert refused.value.code == "exec-too-many"
        assert refused.value.brief.startswith("no?[31mx")
        assert len(refused.value.brief) <= 400
        await channel.aclose()


async def test_a_vmm_that_ends_cuts_every_wait_short(tmp_path: Path) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(12)
        writer.close()

    async with guest_that(behave, tmp_path) as path, asyncio.timeout(DEADLINE_S):
        channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)
        with pytest.raises(GuestError, match="ended"):
            await channel.exec(ExecSpec(("cat",)))
        assert [event async for event in channel.events()] == [GuestHello(False, 0)]
        with pytest.raises(GuestError):
            await channel.stop("SIGTERM", 1)
        await channel.acknowledge(5)
        await channel.aclose()


async def test_a_guest_that_never_answers_is_told_as_silent(tmp_path: Path) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    server = await asyncio.start_unix_server(say_nothing, tmp_path / "ctl")
    with pytest.raises(GuestError) as silent:
        await open_channel(tmp_path / "ctl", fresh=False, deadline_s=0.2)
    assert silent.value.code == "guest-silent"
    server.close()


async def test_a_guest_that_reads_nothing_any_more_is_waited_for_with_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plasmavmc.guest.channel.TAKE_S", 0.01)
    monkeypatch.setattr("plasmavmc.stopping.ASK_S", 0.01)

    async def read_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(FrameType.OUTPUT, bytes(8) + b"\x01" + b"words"))

    async with guest_that(read_nothing, tmp_path) as path, asyncio.timeout(DEADLINE_S):
        channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)
        channel._write(bytes(8 << 20))  # more than all buffers on the way take
        await channel.acknowledge(5)
        await Stop(3600).carry_out(channel, "SIGTERM", asyncio.Event())
        await channel.aclose()


@asynccontextmanager
async def renewed(directory: Path, words: bytes | None) -> AsyncIterator[SocketGuestChannel]:
    """A guest that reads nothing over its first connection but the sync, and over the second says this, or nothing."""
    done = asyncio.Event()
    said = [HELLO, words]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = said.pop(0)
        if answer is not None:
            await reader.readuntil(MAGIC)
            writer.write(MAGIC + await reader.readexactly(16) + answer)
        await done.wait()
        writer.close()

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(directory / "ctl"))

    server = await asyncio.start_unix_server(serve, directory / "ctl")
    async with asyncio.timeout(DEADLINE_S):
        channel = await open_channel_over(connect, "a vsock", fresh=True, deadline_s=DEADLINE_S, renewable=True)
        yield channel
        assert not said
        await channel.aclose()
        done.set()
        server.close()
        await server.wait_closed()


async def test_a_held_guest_that_is_silent_over_its_second_connection_is_told_as_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with renewed(tmp_path, None) as channel:
        monkeypatch.setattr("plasmavmc.guest.words.HOLD_S", 0.05)
        with pytest.raises(GuestError) as silent:
            await channel.thaw(CARD)
        assert silent.value.code == "guest-silent"


async def test_who_waits_for_a_guest_to_read_waits_no_longer_than_the_connection_is_of_use(tmp_path: Path) -> None:
    async with renewed(tmp_path, HELLO + encode(FrameType.THAWED)) as channel:
        channel._write(bytes(8 << 20))  # more than all buffers on the way take
        sending = asyncio.create_task(channel.workload.send(b"words"))
        await asyncio.sleep(0)
        await channel.thaw(CARD)
        await sending


async def test_a_vmm_that_does_not_listen_is_told_as_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as absent:
        await open_channel(tmp_path / "ctl", fresh=False, deadline_s=0.05)
    assert absent.value.code == "no-channel"


async def test_closing_is_idempotent_and_ends_the_events(tmp_path: Path) -> None:
    async with guest_that(saying(), tmp_path) as path, asyncio.timeout(DEADLINE_S):
        channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)
        await channel.aclose()
        await channel.aclose()
        assert [event async for event in channel.events()] == [GuestHello(False, 0)]
        with pytest.raises(GuestError):
            await channel.exec(ExecSpec(("cat",)))


async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a good guest: every command says what it is and ends."""
    while True:
        length, kind, stream, _ = struct.unpack("<IHHI", await reader.readexactly(12))
        await reader.readexactly(length)
        if kind == FrameType.EXEC_START:
            writer.write(encode(FrameType.EXEC_STARTED, bytes(4), stream=stream))
            writer.write(encode(FrameType.EXEC_OUTPUT, b"\x01well", stream=stream))
            writer.write(encode(FrameType.EXEC_EXIT, bytes(4), stream=stream))


async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(OUTPUT * 64)
        await writer.drain()


async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(12)


async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def misbehaves(path: Path) -> None:
    """What the host does with such a guest: it reads what it says, and wants a command of it."""
    channel = await open_channel(path, fresh=True, deadline_s=DEADLINE_S)

    async def read() -> None:
        async for _ in channel.events():
            pass

    reading = asyncio.create_task(read())
    try:
        with suppress(GuestError):
            await channel.exec(ExecSpec(("anything",)))
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await channel.aclose()


@pytest.mark.parametrize(
    "behaviour", [flood, hang, close, saying(b"\xff" * 4096)], ids=["flood", "hang", "close", "lie"]
)
async def test_a_guest_that_misbehaves_hurts_no_other(behaviour: Behaviour, tmp_path: Path) -> None:
    """On the one event loop that all of them share, the other's commands are served until it is cut off, or for long."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "good").mkdir()
    async with guest_that(behaviour, tmp_path / "bad") as bad, guest_that(obey, tmp_path / "good") as good:
        victim = await open_channel(good, fresh=True, deadline_s=DEADLINE_S)
        trouble = asyncio.create_task(misbehaves(bad))
        async with asyncio.timeout(60):
            served = 0
            while served < 50 or not (trouble.done() or behaviour is hang):
                session = await victim.exec(ExecSpec(("hello",)))
                assert [item async for item in session.output()] == [ExecOutput(LogStream.STDOUT, b"well"), ExecExit(0)]
                served += 1
        trouble.cancel()
        await asyncio.gather(trouble, return_exceptions=True)
        await victim.aclose()
