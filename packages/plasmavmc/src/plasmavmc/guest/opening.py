"""How the host comes to a guest channel: it connects, synchronises, and lets a restored guest go on.

Trap: a virtio port gives no sign that the guest has not opened it yet; so the sync is sent at once and answered whenever the
guest is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from plasmavmc.deadlines import within
from plasmavmc.errors import GuestError, UnavailableError
from plasmavmc.guest.api import GuestCard
from plasmavmc.guest.channel import READ, Connect, SocketGuestChannel

_CONNECT_PAUSE_S = 0.005


async def open_channel(path: Path, *, fresh: bool, deadline_s: float) -> SocketGuestChannel:
    """Connect to a guest behind a unix socket and synchronise. `fresh` says that this guest has never heard a host yet.

    Raises:
        GuestError: `guest-silent`, no answer within `deadline_s`; `guest-gone`, the VMM closed the socket; `bad-frame`
            and `guest-version` for a guest that does not speak our protocol.
        UnavailableError: `no-channel`, nothing listens at `path` within `deadline_s`.
    """
    return await open_channel_over(lambda: _connect(path), str(path), fresh=fresh, deadline_s=deadline_s)


async def open_channel_over(
    connect: Connect, where: str, *, fresh: bool, deadline_s: float, renewable: bool = False
) -> SocketGuestChannel:
    """`open_channel` for a guest that is reached in another way; `where` names it in errors. `renewable` says that a
    snapshot cuts the connection: then a held guest is thawed over a new one.

    Raises:
        GuestError, UnavailableError: as `open_channel`, and what `connect` raises.
    """

    async def synchronise(channel: SocketGuestChannel) -> None:
        channel.greet(fresh=fresh)
        await channel.greeted()
        channel.connect = connect if renewable else None

    return await _opened(connect, where, deadline_s, synchronise)


async def wake_channel_over(connect: Connect, where: str, card: GuestCard, *, deadline_s: float) -> SocketGuestChannel:
    """Let a restored guest go on as the card says, whose init is reached only while its vCPUs run: until it has its card it
    holds all else by itself. The channel is renewable.

    Raises:
        GuestError, UnavailableError: as `open_channel_over`; `thaw-…` for a guest that could not become that.
    """

    async def wake(channel: SocketGuestChannel) -> None:
        channel.greet_held()
        channel.begin_thaw(card)
        await channel.greeted()
        await channel.thawed()
        channel.connect = connect

    return await _opened(connect, where, deadline_s, wake)


async def wake_channel(
    path: Path, card: GuestCard, let_run: Callable[[], Awaitable[None]], *, deadline_s: float
) -> SocketGuestChannel:
    """Connect to a restored guest that stands still, and let it go on as the card says. What it must know lies in its
    port before `let_run` lets its first instruction run, so that nothing depends on who is quicker.

    Raises:
        GuestError: as `open_channel`, and `thaw-…` for a guest that could not become what the card says.
        UnavailableError: as `open_channel`, and what `let_run` raises.
    """

    async def wake(channel: SocketGuestChannel) -> None:
        channel.greet_held()
        channel.begin_thaw(card)
        await let_run()
        await channel.greeted()
        await channel.thawed()

    return await _opened(lambda: _connect(path), str(path), deadline_s, wake)


async def _opened(
    connect: Connect, where: str, deadline_s: float, greet: Callable[[SocketGuestChannel], Awaitable[None]]
) -> SocketGuestChannel:
    reader: asyncio.StreamReader | None = None
    channel: SocketGuestChannel | None = None
    try:
        async with within(deadline_s):
            reader, writer = await connect()
            channel = SocketGuestChannel(reader, writer)
            await greet(channel)
    except TimeoutError as error:
        if reader is None:
            raise UnavailableError("no-channel", f"no VMM listens at {where} after {deadline_s:g} s") from error
        raise GuestError(
            "guest-silent",
            f"the guest's init did not answer within {deadline_s:g} s",
            resolution="Its console tells whether its kernel started; the host may be overloaded.",
        ) from error
    else:
        result, channel = channel, None
        return result
    finally:
        if channel is not None:
            await channel.aclose()


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_unix_connection(str(path), limit=READ)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            await asyncio.sleep(_CONNECT_PAUSE_S)
