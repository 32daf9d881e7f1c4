"""Who is attached to a workload: its output to several readers, their input to it.

Theory. An `Attachments` belongs to one VM from before its start to its end; output is handed to it as it is heard, and each
reader takes it at its own pace from a queue of its own. What a reader has not taken yet counts as not acknowledged where
the workload's `Stdio` says that output waits: the guest then keeps it, and in the end lets the workload wait. So a queue
holds no more than the guest's ring; beyond that (a guest that lies, or one whose output waits for nobody) its oldest goes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from plasmavmc.errors import ConflictError, GuestError
from plasmavmc.guest.api import ExecExit, ExecOutput, GuestOutput, InputSession
from plasmavmc.types import MIB, TerminalSize

MAX_QUEUED = 2 * MIB

Taken = Callable[[], Awaitable[None]]


class Attachments:
    """All that are attached to one VM. `taken` is called when a reader took something."""

    def __init__(self, taken: Taken) -> None:
        self._taken = taken
        self._members: list[Attachment] = []
        self._input: InputSession | None = None
        self._opened = asyncio.Event()
        self._end: ExecExit | GuestError | None = None
        self.size = TerminalSize()
        """Of the terminal that was told of last."""

    def attach(self, size: TerminalSize | None) -> Attachment:
        """Join; what the workload writes from now on is heard."""
        if size is not None:
            self.size = size
        member = Attachment(self)
        self._members.append(member)
        return member

    def leave(self, member: Attachment) -> None:
        if member in self._members:
            self._members.remove(member)

    async def taken(self) -> None:
        await self._taken()

    # The VM's side

    def opened(self, workload: InputSession | None) -> None:
        """The workload runs; None: there is no way into it."""
        self._input = workload
        self._opened.set()

    def heard(self, output: GuestOutput) -> None:
        """The workload wrote."""
        for member in self._members:
            member.put(output)

    def ended(self, end: ExecExit | GuestError) -> None:
        """It is over."""
        self._end = end
        self._opened.set()
        for member in self._members:
            member.wake()

    def holding(self, offset: int) -> int:
        """`offset`, or less where a reader has not taken what lies before it."""
        return min((member.first_offset(offset) for member in self._members), default=offset)

    # The members' side

    @property
    def end(self) -> ExecExit | GuestError | None:
        return self._end

    async def way_in(self) -> InputSession | None:
        """The workload's input, as soon as it runs; None once it is over."""
        await self._opened.wait()
        if self._end is not None:
            return None
        if self._input is None:
            raise ConflictError("cannot-attach", "the VM's backend takes no input for its workload")
        return self._input


class Attachment:
    """One who is attached. Implements `ExecSession`; letting it go leaves the workload alone."""

    def __init__(self, all_of_them: Attachments) -> None:
        self._all = all_of_them
        self._queue: deque[GuestOutput] = deque()
        self._queued = 0
        self._changed = asyncio.Event()
        self._gone = False

    def put(self, output: GuestOutput) -> None:
        self._queue.append(output)
        self._queued += len(output.data)
        while self._queued > MAX_QUEUED:
            self._queued -= len(self._queue.popleft().data)
        self._changed.set()

    def wake(self) -> None:
        self._changed.set()

    def first_offset(self, otherwise: int) -> int:
        return min(self._queue[0].offset, otherwise) if self._queue else otherwise

    async def send(self, data: bytes) -> None:
        """Write to its stdin; waits until it runs, and for room."""
        workload = await self._all.way_in()
        if workload is not None:
            await workload.send(data)

    async def send_eof(self) -> None:
        """Close its stdin."""
        workload = await self._all.way_in()
        if workload is not None:
            await workload.send_eof()

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its terminal."""
        self._all.size = size
        workload = await self._all.way_in()
        if workload is not None:
            await workload.resize(size)

    async def signal(self, number: int) -> None:
        """Send a signal to its process."""
        workload = await self._all.way_in()
        if workload is not None:
            await workload.signal(number)

    def output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        """What it writes, and last its exit code.

        Raises:
            GuestError: the VM failed, or ended without telling how.
        """
        return self._output()

    async def _output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        while True:
            self._changed.clear()
            while self._queue:
                output = self._queue.popleft()
                self._queued -= len(output.data)
                await self._all.taken()
                yield ExecOutput(output.stream, output.data)
            if self._gone:
                return
            if isinstance(self._all.end, GuestError):
                raise self._all.end
            if self._all.end is not None:
                yield self._all.end
                return
            await self._changed.wait()

    async def aclose(self) -> None:
        """Let it go; the workload goes on."""
        self._gone = True
        self._queue.clear()
        self._all.leave(self)
        self.wake()
        await self._all.taken()
