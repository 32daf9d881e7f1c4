"""Blank guests: booted ahead, and held before they heard any configuration. New VMs may begin as copies of one.

Theory. What a kernel and our init do until they ask what to run is the same in every VM of the same shape, and is nearly all
of a cold start. So one guest is booted with disks and an interface that stand for nothing, lets go of them, and is held;
its state and memory are kept. A new VM is given its own copy of both, finds its own disks and interface when it is let go
on, and is told its configuration then, as after a boot. No configuration, and so no secret, is ever in a blank.

What copies share until they are told better is what the kernel drew while it booted: above all where it lies in memory.
Time and fresh entropy come before anything else, but who breaks into one guest's kernel learns the layout of the others'.
That is the price, and why blanks are made only where the operator asks for them.

A blank is made beside (`preboot`), when a VM of its shape has just been booted the long way, one at a time; the least
recently used goes when there are too many. A shape whose blank could not be made, or was not taken, is left alone for a
while. They live in the engine's memory and end with it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType

import structlog

from plasmavmc.errors import PlasmaError
from plasmavmc.snapshots.content import copy_out, new_memory

AFTER_FAILURE_S = 300.0

log = structlog.get_logger("plasmavmc.blanks")


@dataclass(frozen=True, slots=True)
class Shape:
    """What two VMs must have in common for one to begin as the other's copy."""

    backend: str
    memory_bytes: int
    traits: frozenset[tuple[str, str]]


class BlankCopy:
    """One VM's own copy of a blank, in the making. The descriptors are there until the block ends."""

    def __init__(self, memory: int, state: int) -> None:
        self._source = os.dup(memory)
        self.state = os.dup(state)
        self.memory = new_memory(os.fstat(memory).st_size)
        self._filling = asyncio.create_task(self._fill(), name="copy of a blank guest")

    async def filled(self) -> None:
        """Return when the memory has its content."""
        await asyncio.shield(self._filling)

    async def __aenter__(self) -> BlankCopy:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._filling.cancel()
        await asyncio.wait({self._filling})
        if not self._filling.cancelled():
            self._filling.exception()  # told where it was awaited, or of less weight than what failed first
        for descriptor in (self._source, self.state, self.memory):
            os.close(descriptor)

    async def _fill(self) -> None:
        await copy_out(self._source, self.memory)


@dataclass(frozen=True, slots=True)
class Blank:
    """A held guest, as two files in memory."""

    memory: int
    state: int

    def copy(self) -> BlankCopy:
        """Begin a copy, which needs the blank no more."""
        return BlankCopy(self.memory, self.state)

    def close(self) -> None:
        os.close(self.memory)
        os.close(self.state)


class Blanks:
    """The blanks of an engine; at most `keep`, and with 0 none is ever made."""

    def __init__(self, keep: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep = keep
        self._clock = clock
        self._blanks: dict[Shape, Blank] = {}
        self._left_alone: dict[Shape, float] = {}
        self._making: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether the operator wants any."""
        return self._keep > 0

    @property
    def shapes(self) -> frozenset[Shape]:
        """Those of which there is one."""
        return frozenset(self._blanks)

    def find(self, shape: Shape) -> Blank | None:
        """The blank of a shape. It may be closed as soon as the caller waits for something: copy it at once."""
        blank = self._blanks.pop(shape, None)
        if blank is not None:
            self._blanks[shape] = blank
        return blank

    def want(self, shape: Shape, make: Callable[[], Awaitable[Blank]]) -> None:
        """Have one made, unless there is one, or another is being made."""
        busy = self._making is not None and not self._making.done()
        if not busy and shape not in self._blanks and self._left_alone.get(shape, 0.0) <= self._clock():
            self._making = asyncio.create_task(self._make(shape, make), name="blank guest")

    def drop(self, shape: Shape) -> None:
        """Forget a blank that was of no use."""
        blank = self._blanks.pop(shape, None)
        if blank is not None:
            blank.close()
        self._left_alone[shape] = self._clock() + AFTER_FAILURE_S

    async def settled(self) -> None:
        """Return when none is being made."""
        if self._making is not None:
            await asyncio.wait({self._making})

    async def aclose(self) -> None:
        """Forget them all, also the one that is being made."""
        if self._making is not None:
            self._making.cancel()
        await self.settled()
        for shape in self.shapes:
            self._blanks.pop(shape).close()

    async def _make(self, shape: Shape, make: Callable[[], Awaitable[Blank]]) -> None:
        try:
            blank = await make()
        except PlasmaError as error:
            log.warning("blank.not_made", reason=str(error))
            self._left_alone[shape] = self._clock() + AFTER_FAILURE_S
            return
        self._blanks[shape] = blank
        while len(self._blanks) > self._keep:
            self._blanks.pop(next(iter(self._blanks))).close()
        log.info("blank.made", memory_bytes=shape.memory_bytes, kept=len(self._blanks))
