"""Takes what one guest says, for as long as its VM lives: into the log, to who is attached, and acknowledged.

Theory. A `Listener` belongs to one VM from before its start to its end, over however many channels: output that was heard
during the boot, after a restart of the engine or after a sleep goes into the same log and to the same readers. What the
log has, and where the workload's `Stdio` says so its readers have too, is acknowledged, so that the guest may drop it.

Traps. All guests share one event loop with the API, and storing costs time: who floods its log is heard a tenth of the
time (`LOG_REST`). A line without its newline is stored when the guest has been silent for a while, else nobody would see
a prompt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import structlog

from plasmavmc.errors import GuestError, PlasmaError
from plasmavmc.guest.api import (
    AttachableChannel,
    ExecExit,
    ExecSession,
    GuestChannel,
    GuestEvent,
    GuestExited,
    GuestFailed,
    GuestHello,
    GuestOutput,
    GuestReady,
)
from plasmavmc.guest.attachment import Attachments
from plasmavmc.guest.logs import LogStore, VmLog
from plasmavmc.types import Stdio, TerminalSize

PARTIAL_LINE_S = 0.5
"""After so long without a newline an unfinished line is stored as it is."""
LOG_REST = 9
"""Storing what a guest wrote is followed by so many times its time for others: one that floods its log gets a tenth of the
event loop, and its init drops, and counts, what does not pass."""
_SHORTEST_REST_S = 0.01
_LONGEST_REST_S = 1.0

log = structlog.get_logger("plasmavmc.listener")


class Listener:
    """See the module's head. One per VM; it is told of each channel by `opened`."""

    def __init__(self, logs: LogStore, key: str, stdio: Stdio) -> None:
        self._logs = logs
        self._key = key
        self._stdio = stdio
        self._events: AsyncIterator[GuestEvent] | None = None
        self._exit_heard = asyncio.Event()
        self._owed_s = 0.0
        self._attachments = Attachments(self._acknowledge)
        self.channel: GuestChannel | None = None
        """The way to the guest, while there is one."""
        self.exit: GuestExited | None = None
        """How the workload ended, once the guest has said so."""

    @property
    def log(self) -> VmLog:
        return self._logs.open(self._key)

    @property
    def terminal_size(self) -> TerminalSize:
        return self._attachments.size

    def attach(self, size: TerminalSize | None) -> ExecSession:
        """Join the workload's own stdin and output, also before it runs."""
        return self._attachments.attach(size)

    def note(self, lines: Iterable[str]) -> None:
        """Log lines of the platform itself."""
        for line in lines:
            self.log.note(line)

    def last_lines(self, count: int) -> tuple[str, ...]:
        """The end of its log, to which nothing comes any more; nothing where that cannot be read."""
        try:
            self.log.close()
            return tuple(line.text for line in self.log.tail(count))
        except OSError as error:
            log.warning("vm.log_unreadable", key=self._key, error=str(error))
            return ()

    def opened(self, channel: GuestChannel, events: AsyncIterator[GuestEvent] | None = None) -> None:
        """The workload runs, and is heard over this channel; `events` where somebody has begun to read them."""
        self.channel = channel
        self._events = events or channel.events()
        self._attachments.opened(channel.workload if isinstance(channel, AttachableChannel) else None)

    async def listen(self) -> None:
        """Take what the guest says until its channel ends; store unfinished lines when it falls silent."""
        assert self._events is not None  # noqa: S101 - set by `opened`, without which there is nobody to hear
        flusher = asyncio.create_task(self._flush_partial_lines())
        try:
            async for event in self._events:
                await self.heard(event)
        except GuestError as error:
            self.log.note(f"the guest broke its channel: {error}")
        finally:
            flusher.cancel()

    async def exited(self) -> None:
        """Return when the guest has said that the workload ended."""
        await self._exit_heard.wait()

    async def heard(self, event: GuestEvent) -> None:
        """The guest said this."""
        match event:
            case GuestOutput(stream, offset, data):
                began = time.monotonic()
                self.log.write(stream, offset, data)
                self._owed_s += (time.monotonic() - began) * LOG_REST
                self._attachments.heard(event)
                await self._acknowledge()
                await self._give_way()
            case GuestExited():
                self.exit = event
                self._exit_heard.set()
            case GuestHello():
                self.log.begin_at(event.log_offset)
            case GuestReady() | GuestFailed():
                pass

    def ended(self, end: ExecExit | GuestError) -> None:
        """The VM is over: who is attached is told so."""
        self._attachments.ended(end)

    async def aclose(self) -> None:
        """Close the channel. Idempotent."""
        channel, self.channel, self._events = self.channel, None, None
        if channel is not None:
            await channel.aclose()

    async def _give_way(self) -> None:
        """Leave the event loop to others, once it is worth a timer."""
        if self._owed_s < _SHORTEST_REST_S:
            await asyncio.sleep(0)
            return
        rest, self._owed_s = min(self._owed_s, _LONGEST_REST_S), 0.0
        await asyncio.sleep(rest)

    async def _flush_partial_lines(self) -> None:
        while True:
            await asyncio.sleep(PARTIAL_LINE_S)
            before = self.log.acknowledged
            await asyncio.sleep(PARTIAL_LINE_S)
            if self.log.has_partial and self.log.acknowledged == before:
                self.log.flush()
                await self._acknowledge()

    async def _acknowledge(self) -> None:
        if self.channel is not None:
            safe = self.log.acknowledged
            if self._stdio is not Stdio.LOGGED:
                safe = self._attachments.holding(safe)
            with suppress(PlasmaError):
                await self.channel.acknowledge(safe)
