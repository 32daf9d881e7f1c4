"""The road by which hints come to a joined host: the platform's bus where it has a pass and gets there, else its links.

Links carry all hints always; while the bus is connected they are passed over there, for it says the same. A key is made here
and kept in memory alone. When a third of its pass's life is left, another key gets another pass, by which is listened before
the one before is let go. A pass that leads nowhere for long is asked for again, since the bus may be another by now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Protocol

import structlog

from shellwego.core.buskeys import statement
from shellwego.core.errors import NotFoundError, ShellWeGoError
from shellwego.core.nkeys import NKey, Role
from shellwego.core.nodes import BUS, LINK
from shellwego.core.troubles import Troubles
from shellwego.drivers.busaccess.authority import new_key
from shellwego.ports.bus import Bus
from shellwego.ports.busaccess import BusPass
from shellwego.ports.clock import Clock
from shellwego.wire.subjects import audible, everything
from shellwego.wire.uplink import BusPassAnswer, BusPassCall, Method

ASK_AGAIN_S = 300.0
"""Where there are no passes: whether there are now."""
RETRY_S = 30.0
LOOK_S = 60.0
LOST_S = 600.0
"""A pass that led nowhere for so long is asked for again."""

log = structlog.get_logger("shellwego.boot")


class Asked(Protocol):
    """The way to the servers; an `UplinkChannel` is one."""

    async def call(self, method: str, asked: object, answer: type[BusPassAnswer]) -> BusPassAnswer: ...


class ListenedBus(Bus, Protocol):
    """A bus that is elsewhere."""

    @property
    def connected(self) -> bool:
        """Whether hints come now."""


Enter = Callable[[BusPass, NKey], Awaitable[ListenedBus]]


class HintRoad:
    """Brings hints to `hints`, the bus of this process alone, for one node or edge. It is what links publish on."""

    def __init__(self, member_id: str, hints: Bus, clock: Clock, enter: Enter) -> None:
        """`enter` opens a bus by a pass and its key."""
        self._member_id = member_id
        self._hints = hints
        self._clock = clock
        self._enter = enter
        self._troubles = Troubles()
        self._bus: ListenedBus | None = None

    @property
    def road(self) -> str:
        """By which road they come now, of `core.nodes.ROADS`."""
        return BUS if self._bus is not None and self._bus.connected else LINK

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """Take what a link says."""
        if self.road == LINK:
            await self._hints.publish(subject, payload)

    async def keep(self, channel: Asked) -> None:
        """Have a pass, where there are any, and listen by it, until cancelled."""
        key, held = new_key(Role.USER), AsyncExitStack()
        try:
            while True:
                try:
                    found = await self._ask(channel, key)
                except NotFoundError:  # an older server
                    pause = ASK_AGAIN_S
                except ShellWeGoError as error:
                    if trouble := self._troubles.failed("pass", error.message, self._clock.monotonic()):
                        log.warning("bus_pass.not_had", reason=error.message, **trouble.fields)
                    key, pause = key if error.temporary else new_key(Role.USER), RETRY_S
                else:
                    before, held = held, await self._listen(found, key) if found else AsyncExitStack()
                    await before.aclose()
                    pause = 0.0 if found else ASK_AGAIN_S
                    if found and await self._outlived(found):
                        key = new_key(Role.USER)
                await self._clock.sleep(pause)
        finally:
            await held.aclose()

    async def _ask(self, channel: Asked, key: NKey) -> BusPass | None:
        """A pass for this key; None where there are none."""
        asked = BusPassCall(public_key=key.public, signature=key.sign(statement(self._member_id)))
        found = (await channel.call(Method.BUS_PASS, asked, BusPassAnswer)).bus_pass
        return found if found and found.urls else None

    async def _listen(self, found: BusPass, key: NKey) -> AsyncExitStack:
        """Listen by a pass, until what is returned is closed."""
        async with AsyncExitStack() as stack:
            bus = await self._enter(found, key)
            stack.push_async_callback(bus.close)
            for pattern in audible(self._member_id):
                stack.push_async_callback(_end, asyncio.create_task(self._carry(bus, pattern)))
            self._bus = bus
            return stack.pop_all()

    async def _carry(self, bus: ListenedBus, pattern: str) -> None:
        async with bus.subscribe(pattern) as hints:
            await self._hints.publish(everything(self._member_id))  # what links said until now was passed over
            async for hint in hints:
                await self._hints.publish(everything(self._member_id) if hint.missed else hint.subject)

    async def _outlived(self, found: BusPass) -> bool:
        """Wait until a pass is to be asked for; False where it leads nowhere, so that the same key may ask again."""
        now = self._clock.monotonic
        due, heard = now() + found.renew_in_s, now()
        while (left := due - now()) > 0:
            await self._clock.sleep(min(LOOK_S, left))
            if self.road == BUS:
                heard = now()
            elif now() - heard >= LOST_S:
                return False
        return True


async def enter_nats(found: BusPass, key: NKey) -> ListenedBus:
    """See `Enter`. Returns also where nobody answers; it is tried again and again."""
    from shellwego.drivers.bus.nats import NatsSite, open_nats  # noqa: PLC0415 - costs memory where it is not used
    from shellwego.drivers.natslink import Login  # noqa: PLC0415

    site = NatsSite(urls=found.urls, certificate=found.certificate, login=lambda: Login(found.token, key), speaks=False)
    return await open_nats(site)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
