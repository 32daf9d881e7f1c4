"""The guest's side of the channel in a worker, through the real host side; and the ring of output behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from plasmavmc.errors import GuestError
from plasmavmc.guest.api import GuestConfig, GuestEvent, GuestExited, GuestFailed, GuestHello, GuestOutput, GuestReady
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.guest.framing import FrameType, encode
from plasmavmc.guest.opening import open_channel
from plasmavmc.hypervisor.wasm.guest import Guest, Told
from plasmavmc.hypervisor.wasm.output import OutputRing
from plasmavmc.types import MIB, ExecSpec, FileSpec, LogStream

T = TypeVar("T")
OUT, ERR = LogStream.STDOUT, LogStream.STDERR


class Idle:
    """A workload that notes what it is told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Told] = asyncio.Queue()
        self.graces: asyncio.Queue[float] = asyncio.Queue()

    def configure(self, told: Told) -> None:
        self.told.put_nowait(told)

    def stop(self, grace_s: float) -> None:
        self.graces.put_nowait(grace_s)


class World:
    """A guest that serves at a path."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ctl.sock"
        self.workload = Idle()
        self.guest = Guest(lambda _guest: self.workload)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(4)
        self.serving = asyncio.create_task(self.guest.serve(listener))

    async def attach(self, *, fresh: bool = False) -> SocketGuestChannel:
        return await open_channel(self.path, fresh=fresh, deadline_s=5.0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    made.serving.cancel()
    await asyncio.wait([made.serving])


async def soon(what: Awaitable[T]) -> T:
    async with asyncio.timeout(5.0):
        return await what


async def all_of(channel: SocketGuestChannel) -> list[GuestEvent]:
    """What the guest says until the channel ends."""
    return [event async for event in channel.events()]


async def told(channel: SocketGuestChannel, last: type[GuestEvent]) -> list[GuestEvent]:
    """What the guest says, up to the first of a kind."""
    found: list[GuestEvent] = []
    async with asyncio.timeout(5.0):
        async for event in channel.events():
            found.append(event)
            if isinstance(event, last):
                return found
    raise AssertionError(f"no {last.__name__} among {found}")


async def test_what_is_told_once_arrives_whole(world: World) -> None:
    channel = await world.attach(fresh=True)
    assert await told(channel, GuestHello) == [GuestHello(configured=False, log_offset=0)]
    files = (FileSpec("/a", b"x" * 100_000, 0o600),)
    await channel.configure(GuestConfig(argv=("/m", "-v"), env={"A": "b=c"}, files=files))
    assert await soon(world.workload.told.get()) == Told(["/m", "-v"], {"A": "b=c"}, list(files))
    world.guest.ready()
    world.guest.write(OUT, b"hello")
    world.guest.exited(7, oom=True)
    end = await told(channel, GuestExited)
    assert end == [GuestReady(), GuestOutput(OUT, 0, b"hello"), GuestExited(7, oom=True)]
    await channel.aclose()


async def test_a_host_that_returns_is_told_again_but_for_what_it_has_stored(world: World) -> None:
    first = await world.attach(fresh=True)
    await first.configure(GuestConfig(argv=("/m",)))
    await soon(world.workload.told.get())
    world.guest.ready()
    world.guest.write(OUT, b"stored")
    world.guest.write(ERR, b"lost")
    await told(first, GuestOutput)
    await first.acknowledge(6)
    await first.aclose()
    second = await world.attach()
    world.guest.failed("some-code", "in words")
    heard = await told(second, GuestFailed)
    assert heard == [
        GuestHello(configured=True, log_offset=6),
        GuestReady(),
        GuestOutput(ERR, 6, b"lost"),
        GuestFailed("some-code", "in words"),
    ]
    await second.aclose()


async def test_the_newest_host_is_the_one_that_is_spoken_to(world: World) -> None:
    first = await world.attach(fresh=True)
    second = await world.attach()
    assert await soon(all_of(first)) == [GuestHello(configured=False, log_offset=0)]
    world.guest.ready()
    assert GuestReady() in await told(second, GuestReady)
    await first.aclose()
    await second.aclose()


async def test_stop_is_passed_on_and_commands_are_refused(world: World) -> None:
    channel = await world.attach(fresh=True)
    with pytest.raises(GuestError) as refused:
        await channel.exec(ExecSpec(("/bin/sh",)))
    assert refused.value.code == "exec-unsupported"
    await channel.stop("SIGTERM", 2.5)
    assert await soon(world.workload.graces.get()) == 2.5
    await channel.aclose()


async def test_noise_before_a_sync_and_a_broken_frame_after_it_cost_the_connection_nothing(world: World) -> None:
    channel = await world.attach(fresh=True)
    broken = bytearray(encode(FrameType.ACK, bytes(8)))
    broken[-1] ^= 1
    channel._writer.write(bytes(broken))
    await channel.aclose()
    again = await world.attach()
    assert await told(again, GuestHello) == [GuestHello(configured=False, log_offset=0)]
    await again.aclose()


async def test_output_beyond_the_window_waits_for_its_reader(world: World) -> None:
    channel = await world.attach(fresh=True)
    world.guest.write(OUT, b"x" * 900_000)
    world.guest.exited(0)
    received = 0
    async with asyncio.timeout(5.0):
        async for event in channel.events():
            if isinstance(event, GuestOutput):
                assert event.offset == received
                received += len(event.data)
            if isinstance(event, GuestExited):
                break
    assert received == 900_000
    await channel.aclose()


def test_a_full_ring_drops_the_oldest_and_the_numbers_show_it() -> None:
    ring = OutputRing()
    for number in range(3 * MIB // 1000):
        ring.write(OUT if number % 2 else ERR, b"%03d" % (number % 1000) * 333)
    assert ring.end - ring.start <= MIB
    found = ring.read(0, 10)
    assert found is not None
    assert found[1] == ring.start > 0


def test_a_ring_gives_back_what_was_written_by_stream_and_forgets_what_is_stored() -> None:
    ring = OutputRing()
    ring.write(OUT, b"ab")
    ring.write(OUT, b"cd")
    ring.write(ERR, b"e")
    assert ring.read(1, 100) == (OUT, 1, b"bcd")
    assert ring.read(4, 100) == (ERR, 4, b"e")
    assert ring.read(5, 100) is None
    ring.acknowledge(4)
    assert (ring.start, ring.end) == (4, 5)
    ring.acknowledge(5)
    assert (ring.start, ring.end) == (5, 5)
