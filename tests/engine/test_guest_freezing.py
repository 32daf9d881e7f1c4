"""A guest that is frozen for its memory to be kept, held, and woken as itself or as another: the real channel and the real C
loop, over a pair of sockets instead of a VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import replace

import pytest

from plasmavmc.errors import GuestError
from plasmavmc.guest.api import GuestCard, GuestConfig, GuestHello, GuestOutput, GuestReady
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.guest.framing import FrameType, encode
from plasmavmc.guest.opening import wake_channel
from plasmavmc.types import ExecSpec
from tests.engine.guest_loopback import DEADLINE_S, Guest, finish, next_of

CARD = GuestCard(unix_time_ns=1_700_000_000_000_000_000, entropy=b"e" * 64, generation=3)


async def beats(channel: SocketGuestChannel, seconds: float) -> int:
    """How much the workload writes in so many seconds."""
    written = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for event in channel.events():
                written += len(event.data) if isinstance(event, GuestOutput) else 0
    return written


BEATING = ("/bin/sh", "-c", "while :; do echo beat; sleep 0.02; done")


async def test_a_frozen_guest_stands_still_until_it_is_thawed(guest: Guest) -> None:
    channel = await guest.start(*BEATING)
    assert await beats(channel, 1.0) > 0
    await channel.freeze()
    await beats(channel, 0.2)
    assert await beats(channel, 0.4) == 0
    await channel.thaw(CARD)
    assert await beats(channel, 1.0) > 0


async def test_a_frozen_guest_still_answers_a_new_host_and_tells_that_it_is_held(guest: Guest) -> None:
    channel = await guest.start(*BEATING)
    await next_of(channel, GuestReady)
    await channel.freeze()
    await channel.aclose()
    again = await guest.open()
    hello = await next_of(again, GuestHello)
    assert hello.configured
    assert hello.held
    await again.thaw(CARD)
    assert await beats(again, 1.0) > 0
    await again.aclose()
    assert not (await next_of(await guest.open(), GuestHello)).held


async def test_a_guest_is_woken_with_its_card_in_the_port_before_it_runs(guest: Guest) -> None:
    channel = await guest.start(*BEATING)
    await next_of(channel, GuestReady)
    await channel.freeze()
    await channel.aclose()
    os.kill(guest.process.pid, signal.SIGSTOP)

    async def let_run() -> None:
        os.kill(guest.process.pid, signal.SIGCONT)

    woken = await wake_channel(guest.proxy.path, CARD, let_run, deadline_s=DEADLINE_S)
    guest.channels.append(woken)
    assert await beats(woken, 1.0) > 0


async def test_what_is_said_to_a_held_guest_is_kept_until_it_goes_on(guest: Guest) -> None:
    channel = await guest.start(*BEATING)
    await next_of(channel, GuestReady)
    session = await channel.exec(ExecSpec(("/bin/cat",)))
    await channel.freeze()
    await channel.freeze()
    await session.send(b"x" * 20_000)
    await session.send_eof()
    await channel.freeze()  # is answered after what was said before it has come
    await channel.thaw(CARD)
    assert await finish(session) == ("x" * 20_000, "", 0)


async def test_a_guest_that_cannot_become_who_it_is_to_be_stays_held(guest: Guest) -> None:
    channel = await guest.start(*BEATING)
    await next_of(channel, GuestReady)
    await channel.freeze()
    with pytest.raises(GuestError) as refused:
        await channel.thaw(replace(CARD, hostname="nobody"))
    assert refused.value.code == "thaw-bad-network"
    await beats(channel, 0.2)
    assert await beats(channel, 0.4) == 0


async def test_a_guest_that_waits_for_its_configuration_is_held_and_told_it_by_who_wakes_it(guest: Guest) -> None:
    channel = await guest.open(fresh=True)
    await channel.freeze()
    await channel.aclose()
    os.kill(guest.process.pid, signal.SIGSTOP)

    async def let_run() -> None:
        os.kill(guest.process.pid, signal.SIGCONT)

    woken = await wake_channel(guest.proxy.path, replace(CARD, generation=0), let_run, deadline_s=DEADLINE_S)
    guest.channels.append(woken)
    hello = await next_of(woken, GuestHello)
    assert (hello.configured, hello.held) == (False, True)
    await woken.configure(GuestConfig(argv=BEATING))
    assert await beats(woken, 1.0) > 0


async def test_a_guest_that_heard_half_of_its_configuration_cannot_be_held(guest: Guest) -> None:
    channel = await guest.open(fresh=True)
    channel._write(encode(FrameType.CONFIG_PART, b"half"))
    with pytest.raises(GuestError) as refused:
        await channel.freeze()
    assert refused.value.code == "freeze-not-running"


async def test_a_freeze_that_is_given_up_and_thawed_leaves_a_guest_that_can_be_frozen_again(guest: Guest) -> None:
    channel = await guest.start(*BEATING)
    await next_of(channel, GuestReady)
    freezing = asyncio.create_task(channel.freeze())
    await asyncio.sleep(0)
    freezing.cancel()
    await channel.thaw(replace(CARD, generation=0))
    await channel.freeze()
    await beats(channel, 0.2)
    assert await beats(channel, 0.4) == 0
