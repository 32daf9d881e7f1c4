"""The bus on NATS, for several hosts.

Hints are published into a JetStream stream in memory, which confirms them and keeps the last of each subject for a minute;
they reach those who listen at once, as plain subscriptions: a node then needs no right but to its own subjects, and none to
JetStream at all. What a listener may have missed is not fetched: whenever the way was cut he is told to look at everything
(`Hint.missed`), which is right also where the bus lost its stream, or the listener was away for longer than it keeps.

`publish` never waits for the bus. What it could not send, or what was not confirmed in time, is sent again under the same
`Nats-Msg-Id`; a publish without an answer is *unknown*, and no use case fails by it.

A connection is used for one life. nats-py's own way of reconnecting keeps its login, gives up when a login has run out, and
leaves subscriptions silent at times (nats.py issue 504), so a new one is made instead, after a pause with jitter.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import SlowConsumerError

from shellwego.core.troubles import Troubles
from shellwego.drivers.bus.listening import QUEUE_LIMIT, Listener
from shellwego.drivers.bus.natsstream import ensure_stream, refusal
from shellwego.drivers.bus.outbox import Letter, Outbox
from shellwego.drivers.natslink import CONNECT_S, PREFIX, TROUBLE, Login, close, connect, settle
from shellwego.ports.bus import Hint

FIRST_TRY_S = 3.0
"""At the start the bus is waited for so long, and no longer."""
_TICK_S = 1.0
RETRY_S = 3.0
"""What was not confirmed for so long is sent again."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0
_MOST_PENDING = 1024 * 1024
"""Bytes that a server may leave unread, before more is held back here."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSite:
    """Where the bus is, and how to get in."""

    urls: tuple[str, ...]
    certificate: str
    """PEM that its servers are known by; empty: by this host's authorities."""
    login: Callable[[], Login]
    """Asked at each connection, so that a renewed pass is used."""
    speaks: bool = True
    """Whether hints are published: the control plane does, agents and edges do not."""


class NatsBus:
    """See `ports.bus.Bus`. Made by `open_nats`."""

    def __init__(self, site: NatsSite, *, queue_limit: int = QUEUE_LIMIT, retry_s: float = RETRY_S) -> None:
        self._site = site
        self._retry_s = retry_s
        self._limit = queue_limit
        self._listeners: dict[str, list[Listener]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._outbox = Outbox(secrets.token_hex(8))
        self._inbox = f"_INBOX.{self._outbox.sender}"
        self._connection: Client | None = None
        self._stream_ready = False
        self._decided = asyncio.Event()
        self._troubles = Troubles()
        self._closed = False
        self._ended = asyncio.Event()
        self._apart: set[asyncio.Task[None]] = set()
        self._task = asyncio.ensure_future(self._live())

    @property
    def connected(self) -> bool:
        """Whether hints come and go now."""
        return self._connection is not None and self._connection.is_connected

    @property
    def unconfirmed(self) -> int:
        """Hints that the bus has not confirmed yet."""
        return len(self._outbox)

    async def decided(self, timeout_s: float = FIRST_TRY_S) -> bool:
        """Wait until it was tried to connect once; returns whether it is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._decided.wait()
        return self.connected

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        if self._closed or not self._site.speaks:
            return
        letter = self._outbox.post(subject, payload)
        if self._connection is not None:
            await self._send(self._connection, letter)

    @asynccontextmanager
    async def subscribe(self, pattern: str) -> AsyncIterator[AsyncIterator[Hint]]:
        listener = Listener(pattern, self._limit)
        if self._closed:
            listener.close()
        known = pattern in self._listeners
        self._listeners.setdefault(pattern, []).append(listener)
        try:
            if self._connection is not None:
                await self._do_apart(self._ask_for(self._connection, [] if known else [pattern]))
            yield listener.hints()
        finally:
            await self._leave(listener)

    async def close(self) -> None:
        self._closed = True
        self._ended.set()  # nats-py swallows a cancellation at times
        for task in (self._task, *self._apart):
            task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for listener in [each for listeners in self._listeners.values() for each in listeners]:
            listener.close()

    async def _do_apart(self, work: Coroutine[Any, Any, None]) -> None:
        """Have a task of its own wait for nats-py, which swallows a cancellation at times: a caller who is cancelled ends at
        once, and would else go on for good. What was begun is ended all the same."""
        task = asyncio.create_task(work)
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)
        await asyncio.wait({task})
        task.result()

    # One life of a connection after another.

    async def _live(self) -> None:
        pause, turn = _PAUSE_S, random.randrange(1000)  # noqa: S311 - spreads load, no secret
        while not self._closed:
            turn += 1
            try:
                if await self._one_life(self._site.urls[turn % len(self._site.urls)]):
                    pause = _PAUSE_S
            except TROUBLE as error:
                self._tell("connection", "bus.unreachable", str(error) or type(error).__name__)
            except asyncio.CancelledError:
                if self._closed or _asked_to_end():
                    raise  # else nats-py cancelled what somebody waited for, as it does when a connection ends
                self._tell("connection", "bus.unreachable", "the connection was closed")
            except Exception as error:  # noqa: BLE001 - a defect must not end the bus for good
                self._tell("connection", "bus.failed", repr(error))
            finally:
                self._decided.set()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _one_life(self, url: str) -> bool:
        """Connect, and serve until the connection ends. Returns True where it was one; raises where it came to none."""
        ended = self._ended = asyncio.Event()

        async def closed() -> None:
            ended.set()

        async with asyncio.timeout(CONNECT_S):
            login = self._site.login()
            client = await connect(url, self._site.certificate, login, noted=self._note, closed=closed)
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._open(client)
            self._decided.set()
            while not ended.is_set() and not client.is_closed:
                await self._tick(client)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S):
                        await ended.wait()
            if not self._closed:
                self._tell("connection", "bus.unreachable", str(client.last_error or "the connection was closed"))
        finally:
            self._connection = None
            await close(client)
        return True

    async def _open(self, client: Client) -> None:
        """Listen, and tell who listened before that hints may have been missed; then send what waits."""
        if self._site.speaks:
            await client.subscribe(f"{self._inbox}.*", cb=self._confirm)
        waiting = {pattern: tuple(listeners) for pattern, listeners in self._listeners.items()}
        self._connection, self._subscriptions, self._stream_ready = client, {}, False
        await self._ask_for(client, list(waiting))
        for pattern, listeners in waiting.items():
            for listener in listeners:
                listener.put(Hint(pattern, missed=True))
        for letter in self._outbox.due(float("inf")):
            await self._send(client, letter)

    async def _tick(self, client: Client) -> None:
        """Now and then: see to the stream, and send again what was not confirmed."""
        if self._site.speaks:
            await self._see_to_stream(client)
            unknown = self._outbox.due(asyncio.get_running_loop().time() - self._retry_s)
            if unknown:
                self._tell("publish", "bus.publish_unknown", "hints were not confirmed in time, and are sent again")
            for letter in unknown:
                await self._send(client, letter)
        self._tell_success("connection")
        self._tell_success("publish")

    async def _see_to_stream(self, client: Client) -> None:
        if self._stream_ready:
            return
        try:
            await ensure_stream(client, f"{PREFIX}>")
        except TROUBLE as error:
            self._tell("stream", "bus.no_stream", str(error) or type(error).__name__)
        else:
            self._stream_ready = True
            self._tell_success("stream")

    # What goes out.

    async def _send(self, client: Client, letter: Letter) -> None:
        """Hand a hint to the connection; where that cannot take it now, it waits for the next tick, or the next life."""
        if not client.is_connected or client.pending_data_size > _MOST_PENDING:
            return
        with suppress(*TROUBLE):
            await client.publish(
                f"{PREFIX}{letter.subject}",
                letter.payload,
                reply=f"{self._inbox}.{letter.id}",
                headers={"Nats-Msg-Id": letter.id},
            )
            self._outbox.sent(letter, asyncio.get_running_loop().time())

    async def _confirm(self, answer: Msg) -> None:
        """The stream has it, or says why not; without a stream the server says that nobody answers."""
        reason = refusal(answer)
        if reason:
            self._stream_ready = False
            self._tell("stream", "bus.no_stream", reason)
        else:
            self._outbox.confirmed(answer.subject.rpartition(".")[2])

    # What comes in.

    async def _ask_for(self, client: Client, patterns: list[str]) -> None:
        """Subscribe; when this returns, the server knows of everything that was asked for."""
        with suppress(*TROUBLE):
            for pattern in patterns:
                subscription = await client.subscribe(f"{PREFIX}{pattern}", cb=self._hear(pattern))
                self._subscriptions[pattern] = subscription
                if pattern not in self._listeners:  # who asked for it has left meanwhile
                    await self._give_up(pattern)
            await settle(client)

    async def _give_up(self, pattern: str) -> None:
        subscription = self._subscriptions.pop(pattern, None)
        if subscription is not None and self.connected:
            with suppress(*TROUBLE):
                await subscription.unsubscribe()

    def _hear(self, pattern: str) -> Callable[[Msg], Awaitable[None]]:
        async def hear(message: Msg) -> None:
            hint = Hint(message.subject.removeprefix(PREFIX), message.data)
            for listener in self._listeners.get(pattern, ()):
                listener.put(hint)

        return hear

    async def _note(self, error: Exception) -> None:
        """What the client noticed on its way; the end of a connection is told elsewhere."""
        if isinstance(error, SlowConsumerError):
            for pattern, listeners in self._listeners.items():
                for listener in listeners:
                    listener.put(Hint(pattern, missed=True))
        elif "permissions violation" in str(error).lower():
            self._tell("permission", "bus.not_permitted", str(error))

    async def _leave(self, listener: Listener) -> None:
        listener.close()
        listeners = self._listeners[listener.pattern]
        listeners.remove(listener)
        if not listeners:
            del self._listeners[listener.pattern]
            await self._do_apart(self._give_up(listener.pattern))

    def _tell(self, key: str, event: str, reason: str) -> None:
        if trouble := self._troubles.failed(key, reason, asyncio.get_running_loop().time()):
            _log.warning(event, reason=reason, **trouble.fields)

    def _tell_success(self, key: str) -> None:
        if trouble := self._troubles.passed(key, asyncio.get_running_loop().time()):
            _log.info("bus.works_again", after=key, **trouble.fields)


def _asked_to_end() -> bool:
    """Whether it is this task that was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def open_nats(site: NatsSite) -> NatsBus:
    """Begin to connect. Where the bus does not answer, that is logged and tried again, and the platform starts without."""
    bus = NatsBus(site)
    await bus.decided()
    return bus
