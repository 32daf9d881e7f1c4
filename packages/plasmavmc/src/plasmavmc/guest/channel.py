"""The real guest channel: frames over the unix socket behind the guest's virtio port.

Theory. One task reads the socket and never waits for anybody: what it hears is bounded by credit (output) or by
count (the rest) and put where its reader finds it. What the guest says after a resync is told again by the guest itself
(ready, ended, unacknowledged output), so this side keeps no state across connections. What runs beside the workload has
streams of its own (`commands`).

Trap: bytes that the guest wrote for a host side that is gone still arrive; everything before the echo of our nonce is
passed over.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from plasmavmc.deadlines import within
from plasmavmc.errors import ConflictError, GuestError
from plasmavmc.guest.api import GuestCard, GuestConfig, GuestEvent, GuestHello
from plasmavmc.guest.commands import Commands
from plasmavmc.guest.framing import (
    MAX_PAYLOAD,
    NONCE_BYTES,
    Frame,
    FrameDecoder,
    FrameType,
    encode,
    sync,
    sync_between_frames,
)
from plasmavmc.guest.messages import (
    Order,
    decode_exited,
    decode_failed,
    decode_hello,
    decode_output,
    decode_ready,
    decode_u32,
    encode_card,
    encode_config,
    encode_copy_in,
    encode_copy_out,
    encode_exec,
    encode_order,
    encode_stop,
    encode_u32,
    encode_u64,
)
from plasmavmc.guest.session import SocketExecSession, Window
from plasmavmc.guest.words import Events, Words, in_time
from plasmavmc.types import CopyTarget, ExecSpec

READ = 64 * 1024
"""Bytes that are held of a connection before they are decoded."""
_MAX_EVENTS = 64
"""Events that are not output, of one channel. An honest guest has a handful in its life."""
_MAX_UNKNOWN = 1024
"""Frames that mean nothing to us, of one channel. Unlike output, no credit holds them back."""
_ORDER_NAME = 2
"""Bytes of an order, and of its answer, that say which it is: the verb and the disk."""
TAKE_S = 1.0
"""For a guest to take what is acknowledged to it."""
_CLOSE_S = 1.0


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Makes a connection to the guest; tries until it succeeds or is cancelled."""


class SocketGuestChannel:
    """One guest's channel over a socket. Implements `GuestChannel`. Made in `guest.opening`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connect: Connect | None = None
        """How the guest is reached anew, where a snapshot cuts the connection."""
        self._events: deque[tuple[GuestEvent, int]] = deque()
        self._changed = asyncio.Event()
        self._commands = Commands(self._write, self._drain, self._pass_over)
        self.workload = SocketExecSession(0, self._write, self._drain)
        """The workload's own stdin, terminal and signals. Implements `AttachableChannel`."""
        self._acknowledged = 0
        self._configured = False
        self._words = Words()
        self._ordering = asyncio.Lock()
        self._ordered = b""
        """The order under way: what its answer begins with."""
        self._kept: list[bytes] | None = None
        self._error: GuestError | None = None
        self._closed = False
        self._begin_reading(reader, writer)

    def _begin_reading(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All that belongs to one connection."""
        self._reader = reader
        self._writer = writer
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._decoder = FrameDecoder(self._nonce)
        self._log_window = Window(self._grant_log)
        self._told = 0
        self._unknown = 0
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(), name="guest channel")

    async def _renew(self, connect: Connect) -> None:
        """Reach the held guest over a new connection. That the old one was cut may not have been heard yet. What waited to
        be said over the old one was about commands that are gone with it."""
        self._kept = []
        self._acknowledged = 0
        self._reading.cancel()
        await asyncio.wait({self._reading})
        self._writer.transport.abort()  # else who waits for room in it might do so for as long as the VM lives
        self._kept = []
        self._begin_reading(*await connect())
        self.workload.renewed()
        self.greet_held()

    def greet(self, *, fresh: bool) -> None:
        """Send our nonce; `greeted` returns when the guest has said hello to it."""
        self._writer.write(sync(self._nonce, fresh=fresh))

    def greet_held(self) -> None:
        """As `greet`, for a guest whose last word from a host was FREEZE, which it has read whole: see `freeze`."""
        self._writer.write(sync_between_frames(self._nonce))

    async def greeted(self) -> None:
        await asyncio.shield(self._hello)

    # Hearing

    async def _read(self) -> None:
        error = GuestError("guest-gone", "the guest's channel ended", resolution="The VM ended or is about to.")
        try:
            while data := await self._reader.read(READ):
                for frame in self._decoder.feed(data):
                    self._hear(frame)
        except GuestError as broken:
            error = broken
        except OSError as broken:
            error.details = str(broken)
        finally:
            self._end(error)

    def _end(self, error: GuestError) -> None:
        if self.connect is None or self._kept is None or self._closed or error.code != "guest-gone":
            self._error = error
            self.workload.broke(error)
        if not self._hello.done():
            self._hello.set_exception(error)
            self._hello.exception()  # it may be that nobody waits for it any more
        self._commands.broke(error)
        self._words.end(error)
        self._changed.set()
        self._writer.close()

    def _hear(self, frame: Frame) -> None:
        if frame.stream:
            self._commands.hear(frame)
            return
        match frame.type:
            case FrameType.HELLO:
                self._hear_hello(decode_hello(frame))
            case FrameType.CREDIT:
                self.workload.heard_credit(decode_u32(frame))
            case FrameType.READY:
                self._tell(decode_ready(frame))
            case FrameType.OUTPUT:
                self._log_window.received(frame.cost)
                self._events.append((decode_output(frame), frame.cost))
                self._changed.set()
            case FrameType.FAILED:
                self._tell(decode_failed(frame))
                self._write(encode(FrameType.SEEN_END))
            case FrameType.EXITED:
                self._tell(decode_exited(frame))
                self._write(encode(FrameType.SEEN_END))
            case FrameType.FROZEN:
                self._answered(FrameType.FROZEN, _refusal("freeze", frame))
            case FrameType.THAWED:
                self._answered(FrameType.THAWED, _refusal("thaw", frame))
            case _:
                self._hear_answer(frame)

    def _hear_answer(self, frame: Frame) -> None:
        """To an order, if it is one."""
        if frame.type == FrameType.ORDERED and frame.payload[:_ORDER_NAME] == self._ordered:
            self._answered(FrameType.ORDERED, _refusal("volume", replace(frame, payload=frame.payload[_ORDER_NAME:])))
        else:
            self._pass_over()

    def _answered(self, word: FrameType, error: GuestError | None) -> None:
        """Words that nobody asked for are as good as ones without meaning."""
        if not self._words.say(word, error):
            self._pass_over()

    def _hear_hello(self, hello: GuestHello) -> None:
        self._configured = hello.configured
        self._tell(hello)
        if not self._hello.done():
            self._hello.set_result(None)

    def _tell(self, event: GuestEvent) -> None:
        self._told += 1
        if self._told > _MAX_EVENTS:
            raise GuestError("bad-frame", "the guest repeats itself without end")
        self._events.append((event, 0))
        self._changed.set()

    def _pass_over(self) -> None:
        """A newer guest's word, or one that comes again; a flood of them is none, and would keep the event loop busy."""
        self._unknown += 1
        if self._unknown > _MAX_UNKNOWN:
            raise GuestError("bad-frame", "the guest says without end what means nothing")

    # Telling

    def _write(self, data: bytes) -> None:
        if self._error is not None or self._closed:
            return
        if self._kept is None:
            self._writer.write(data)
        else:
            self._kept.append(data)

    async def _drain(self) -> None:
        if self._error is None and not self._closed:
            with suppress(OSError):  # the reader finds the end too, and tells it
                await self._writer.drain()

    def _grant_log(self, cost: int) -> None:
        self._write(encode(FrameType.CREDIT, encode_u32(cost)))

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise GuestError("channel-closed", "the host's side of the guest channel is closed")

    async def configure(self, config: GuestConfig) -> None:
        """Send the configuration, once.

        Raises:
            ConflictError: `configured`, the guest has its configuration already.
            InvalidSpecError: the configuration cannot be said.
            GuestError: the channel ended.
        """
        self._check_open()
        if self._configured:
            raise ConflictError("configured", "the guest has its configuration already")
        encoded = encode_config(config)
        self._configured = True
        for start in range(0, len(encoded), MAX_PAYLOAD):
            self._write(encode(FrameType.CONFIG_PART, encoded[start : start + MAX_PAYLOAD]))
            await self._drain()
        self._write(encode(FrameType.CONFIG_END))
        await self._drain()

    def events(self) -> AsyncIterator[GuestEvent]:
        """What the guest says, in order, until the channel ends. One consumer, who may stop and go on.

        Raises:
            GuestError: `bad-frame`, the guest broke the protocol; what it said before was told.
        """
        return Events(self.next_event)

    async def next_event(self) -> GuestEvent:
        """The next of `events`."""
        while not self._events:
            if self._error is not None and self._error.code != "guest-gone":
                raise self._error
            if self._error is not None or self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        event, cost = self._events.popleft()
        self._log_window.consumed(cost)
        return event

    async def acknowledge(self, offset: int) -> None:
        """Output before `offset` is safe on the host; the guest may drop it from its ring. One that writes and does not read
        is waited for, so that it is heard slowly and few words for it gather; but not without end, for who reads the output
        of its VM waits here too."""
        if offset > self._acknowledged:
            self._acknowledged = offset
            self._write(encode(FrameType.ACK, encode_u64(offset)))
            with suppress(TimeoutError):
                async with within(TAKE_S):
                    await self._drain()

    async def exec(self, spec: ExecSpec) -> SocketExecSession:
        """Start a command.

        Raises:
            InvalidSpecError: the request cannot be said.
            GuestError: `exec-…` where the guest refuses for another reason than that it cannot execute the command;
                `exec-timeout`; the channel ended.
        """
        self._check_open()
        return await self._commands.begin(FrameType.EXEC_START, encode_exec(spec), terminal=spec.terminal is not None)

    async def copy_in(self, target: CopyTarget) -> SocketExecSession:
        """Take in a tree, as a tar stream on the session's stdin; raises as `exec`."""
        self._check_open()
        return await self._commands.begin(FrameType.COPY_IN, encode_copy_in(target))

    async def copy_out(self, path: str) -> SocketExecSession:
        """Give out a tree, as a tar stream on the session's stdout; raises as `exec`."""
        self._check_open()
        return await self._commands.begin(FrameType.COPY_OUT, encode_copy_out(path))

    async def freeze(self) -> None:
        """Hold every process of the guest but its init. Nothing more is written to the guest until it is thawed, so that one
        which is restored from a snapshot has not read half of a frame.

        Raises:
            GuestError: `freeze-…` where the guest cannot; `guest-silent`; the channel ended.
        """
        self._check_open()
        self._words.expect(FrameType.FROZEN)
        self._kept = [] if self._kept is None else self._kept
        self._writer.write(encode(FrameType.FREEZE))
        await self._words.heard(FrameType.FROZEN)

    async def thaw(self, card: GuestCard) -> None:
        """Let a held guest run on as the card says.

        Raises:
            GuestError: `thaw-…` where the guest could not become that; `guest-silent`; the channel ended.
        """
        self._check_open()
        async with in_time():
            if self.connect is not None:
                await self._renew(self.connect)
            self.begin_thaw(card)
            await self.greeted()
            await self.thawed()

    def begin_thaw(self, card: GuestCard) -> None:
        """Send the card; `thawed` returns at the guest's word."""
        self._words.expect(FrameType.THAWED)
        kept, self._kept = self._kept or [], None
        for data in (encode(FrameType.THAW, encode_card(card)), *kept):
            self._write(data)

    async def thawed(self) -> None:
        await self._words.heard(FrameType.THAWED)

    async def freeze_volume(self, disk: int) -> None:
        """Let nobody write to a volume until it is thawed.

        Raises:
            GuestError: `volume-…` where the guest cannot; `guest-silent`; the channel ended.
        """
        await self._order(Order.FREEZE, disk)

    async def thaw_volume(self, disk: int) -> None:
        """Let go on who wants to write; raises as `freeze_volume`."""
        await self._order(Order.THAW, disk)

    async def grow_volume(self, disk: int, size_bytes: int) -> None:
        """Grow a volume's file system to its disk; raises as `freeze_volume`."""
        await self._order(Order.GROW, disk, size_bytes)

    async def _order(self, order: Order, disk: int, size_bytes: int = 0) -> None:
        """One at a time: an answer names its order, and not which of several it was."""
        async with self._ordering:
            self._check_open()
            said = encode_order(order, disk, size_bytes)
            self._ordered = said[:_ORDER_NAME]
            self._words.expect(FrameType.ORDERED)
            self._write(encode(FrameType.ORDER, said))
            await self._words.heard(FrameType.ORDERED)

    async def stop(self, signal: str, grace_s: float) -> None:
        """Ask for a graceful end: the signal now, SIGKILL after `grace_s`; then `GuestExited` follows.

        Raises:
            InvalidSpecError: no such signal.
            GuestError: the channel ended.
        """
        self._check_open()
        self._write(encode(FrameType.STOP, encode_stop(signal, grace_s)))
        await self._drain()

    async def aclose(self) -> None:
        """Close the host's side; the guest goes on. What was written is sent first, if the guest takes it.
        Idempotent."""
        self._closed = True
        self._changed.set()
        self._reading.cancel()
        await asyncio.wait({self._reading})
        try:
            async with within(_CLOSE_S):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()
        except OSError:
            pass  # it was gone already


def _refusal(doing: str, frame: Frame) -> GuestError | None:
    """Why the guest could not do as asked; it says nothing where it could."""
    if not frame.payload:
        return None
    failed = decode_failed(frame)
    return GuestError(f"{doing}-{failed.code}", failed.message)
