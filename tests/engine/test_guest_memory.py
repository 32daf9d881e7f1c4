"""The pretended guest keeps the promises of the real channel that others rely on."""

from __future__ import annotations

import asyncio

import pytest

from plasmavmc.errors import ConflictError, GuestError, InvalidSpecError
from plasmavmc.guest.api import (
    ExecExit,
    ExecOutput,
    GuestConfig,
    GuestEvent,
    GuestExited,
    GuestFailed,
    GuestHello,
    GuestOutput,
    GuestReady,
)
from plasmavmc.guest.memory import MemoryGuest, MemoryGuestChannel, Script
from plasmavmc.types import ExecSpec, LogStream

CONFIG = GuestConfig(argv=("/app",))


async def told(channel: MemoryGuestChannel, count: int) -> list[GuestEvent]:
    events = channel.events()
    return [await asyncio.wait_for(anext(events), 1) for _ in range(count)]


async def test_a_life_in_order() -> None:
    guest = MemoryGuest(lambda _: Script(output=((LogStream.STDOUT, b"hi\n"),), exit_code=3))
    channel = guest.attach()
    guest.boot()
    assert await told(channel, 1) == [GuestHello(False, 0)]
    await channel.configure(CONFIG)
    assert await told(channel, 3) == [GuestReady(), GuestOutput(LogStream.STDOUT, 0, b"hi\n"), GuestExited(3)]
    await asyncio.wait_for(guest.powered_off(), 1)
    guest.cut()
    assert [event async for event in channel.events()] == []


async def test_a_workload_that_cannot_start() -> None:
    guest = MemoryGuest(lambda _: Script(failure=GuestFailed("no-such-user", "who")))
    channel = guest.attach()
    guest.boot()
    await channel.configure(CONFIG)
    assert await told(channel, 2) == [GuestHello(False, 0), GuestFailed("no-such-user", "who")]


async def test_a_second_configuration_is_refused_and_a_wrong_one_too() -> None:
    channel = MemoryGuest().attach()
    with pytest.raises(InvalidSpecError):
        await channel.configure(GuestConfig(argv=()))
    await channel.configure(CONFIG)
    with pytest.raises(ConflictError):
        await channel.configure(CONFIG)


async def test_a_new_channel_is_told_again_what_was_not_acknowledged() -> None:
    guest = MemoryGuest()
    first = guest.attach()
    guest.boot()
    await first.configure(CONFIG)
    guest.write(b"one\n")
    guest.write(b"two\n")
    await first.acknowledge(4)
    await first.aclose()
    guest.exit(5)
    second = guest.attach()
    assert await told(second, 4) == [
        GuestHello(True, 4),
        GuestReady(),
        GuestOutput(LogStream.STDOUT, 4, b"two\n"),
        GuestExited(5),
    ]


async def test_a_deaf_workload_is_killed_when_the_grace_is_over() -> None:
    graces: list[float] = []

    async def sleep(seconds: float) -> None:
        graces.append(seconds)

    guest = MemoryGuest(lambda _: Script(stop_code=None), sleep=sleep)
    channel = guest.attach()
    guest.boot()
    await channel.configure(CONFIG)
    await channel.stop("SIGTERM", 7)
    assert (await told(channel, 3))[-1] == GuestExited(137)
    assert graces == [7]


async def test_a_polite_workload_ends_at_once() -> None:
    guest = MemoryGuest()
    channel = guest.attach()
    guest.boot()
    await channel.configure(CONFIG)
    await channel.stop("SIGTERM", 7)
    assert (await told(channel, 3))[-1] == GuestExited(0)


async def test_commands() -> None:
    guest = MemoryGuest()
    channel = guest.attach()
    with pytest.raises(GuestError, match="configuration"):
        await channel.exec(ExecSpec(("echo",)))
    await channel.configure(CONFIG)
    echo = await channel.exec(ExecSpec(("echo", "a", "b")))
    assert [item async for item in echo.output()] == [ExecOutput(LogStream.STDOUT, b"a b\n"), ExecExit(0)]
    cat = await channel.exec(ExecSpec(("cat",)))
    await cat.send(b"x")
    await cat.send_eof()
    assert [item async for item in cat.output()] == [ExecOutput(LogStream.STDOUT, b"x"), ExecExit(0)]
    ended = await channel.exec(ExecSpec(("exit", "9")))
    assert [item async for item in ended.output()] == [ExecExit(9)]
    unknown = await channel.exec(ExecSpec(("nonsense",)))
    reason = ExecOutput(LogStream.STDERR, b"nonsense was not found in the image\n")
    assert [item async for item in unknown.output()] == [reason, ExecExit(127)]


async def test_commands_end_with_their_channel() -> None:
    guest = MemoryGuest()
    channel = guest.attach()
    await channel.configure(CONFIG)
    session = await channel.exec(ExecSpec(("sleep",)))
    guest.attach()
    with pytest.raises(GuestError):
        await anext(session.output())
    with pytest.raises(GuestError):
        await channel.exec(ExecSpec(("echo",)))
