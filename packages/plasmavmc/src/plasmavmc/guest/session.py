"""The host's end of one command in a guest, and the credit that keeps streams apart.

Theory. Whoever receives a stream grants bytes to whoever sends it; a sender without credit waits. What a slow reader has
not taken yet is thus bounded, in a queue of its own, and the reader of the socket never has to wait for anybody. The
guest is not trusted to keep to its credit: more than granted ends the channel.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from plasmavmc.errors import GuestError
from plasmavmc.guest.api import NOT_EXECUTED, ExecExit, ExecOutput, GuestFailed
from plasmavmc.guest.framing import FrameType, encode
from plasmavmc.guest.messages import encode_size, encode_u32
from plasmavmc.types import LogStream, TerminalSize

OUTPUT_WINDOW = 256 * 1024
STDIN_WINDOW = 64 * 1024
_STDIN_FRAME = 16 * 1024

Write = Callable[[bytes], None]
Drain = Callable[[], Awaitable[None]]
"""Waits until the socket has taken what was written, so that a flood of small requests is not kept in memory."""


class Window:
    """Credit that we granted to the guest for one stream: what it may still send, and what we owe it back."""

    def __init__(self, grant: Callable[[int], None]) -> None:
        self._grant = grant
        self._left = OUTPUT_WINDOW
        self._taken = 0

    def received(self, cost: int) -> None:
        """Raises `GuestError` where the guest sent more than it may."""
        self._left -= cost
        if self._left < 0:
            raise GuestError("bad-frame", "the guest sent more than it was granted")

    def consumed(self, cost: int) -> None:
        """The reader took so much; grant it anew, a quarter of the window at a time."""
        self._taken += cost
        if self._taken >= OUTPUT_WINDOW // 4:
            self._left += self._taken
            self._grant(self._taken)
            self._taken = 0


class SocketExecSession:
    """A command on a stream of a channel. Implements `ExecSession`."""

    def __init__(self, stream: int, write: Write, drain: Drain, *, terminal: bool = False) -> None:
        self._stream = stream
        self._line_end = "\r\n" if terminal else "\n"
        self._write = write
        self._drain = drain
        self._window = Window(self._grant)
        self._queue: deque[tuple[ExecOutput, int]] = deque()
        self._changed = asyncio.Event()
        self._exit: ExecExit | None = None
        self._error: GuestError | None = None
        self._stdin_credit = STDIN_WINDOW
        self._stdin_room = asyncio.Event()
        self._stdin_lock = asyncio.Lock()
        self._stdin_closed = False
        self._hung_up = False
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # What the channel tells us

    def heard_output(self, output: ExecOutput, cost: int) -> None:
        self._window.received(cost)
        if not self._hung_up:
            self._queue.append((output, cost))
            self._changed.set()

    def heard_credit(self, grant: int) -> None:
        self._stdin_credit += grant
        if grant == 0 or self._stdin_credit > STDIN_WINDOW:
            raise GuestError("bad-frame", "the guest took more input than it was sent")
        self._stdin_room.set()

    def heard_exit(self, code: int) -> None:
        self._exit = ExecExit(code)
        self._wake()

    def heard_refusal(self, failed: GuestFailed) -> None:
        """The guest did not start the command. One that cannot be executed ends as in a shell."""
        code = NOT_EXECUTED.get(failed.code)
        if code is None or self.started.done():
            self.broke(GuestError(f"exec-{failed.code}", failed.message))
            return
        self._queue.append((ExecOutput(LogStream.STDERR, f"{failed.message}{self._line_end}".encode()), 0))
        self.started.set_result(None)
        self.heard_exit(code)

    def broke(self, error: GuestError) -> None:
        """The guest refused the command, or the channel ended."""
        if self._exit is not None or self._error is not None:
            return
        self._error = error
        if not self.started.done():
            self.started.set_exception(error)
            self.started.exception()  # it may be that nobody waits for it any more
        self._wake()

    def renewed(self) -> None:
        """The guest is reached over a new connection, and has dropped what input waited in it."""
        self._stdin_credit = STDIN_WINDOW
        self._stdin_room.set()

    def _wake(self) -> None:
        self._changed.set()
        self._stdin_room.set()

    def _grant(self, cost: int) -> None:
        if self._open:
            self._send(FrameType.CREDIT, encode_u32(cost))

    # What its user asks of us

    @property
    def _open(self) -> bool:
        return self._exit is None and self._error is None and not self._hung_up

    def _send(self, kind: FrameType, payload: bytes = b"") -> None:
        self._write(encode(kind, payload, stream=self._stream))

    async def send(self, data: bytes) -> None:
        """Write to its stdin; waits for room. What is sent to a command that ended is dropped.

        Raises:
            GuestError: the channel ended.
        """
        async with self._stdin_lock:
            view = memoryview(data)
            while view and self._open and not self._stdin_closed:
                size = min(len(view), self._stdin_credit, _STDIN_FRAME)
                if size == 0:
                    self._stdin_room.clear()
                    await self._stdin_room.wait()
                    continue
                self._stdin_credit -= size
                self._send(FrameType.STDIN, bytes(view[:size]))
                await self._drain()
                view = view[size:]
        if self._error is not None:
            raise self._error

    async def send_eof(self) -> None:
        """Close its stdin, behind what was sent."""
        async with self._stdin_lock:
            if self._open and not self._stdin_closed:
                self._stdin_closed = True
                self._send(FrameType.STDIN_EOF)
                await self._drain()

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its pty."""
        if self._open:
            self._send(FrameType.RESIZE, encode_size(size))
            await self._drain()

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        if self._open:
            self._send(FrameType.SIGNAL, encode_u32(number))
            await self._drain()

    def output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        """What it writes, and last its exit code. One reader.

        Raises:
            GuestError: the guest went away first.
        """
        return self._output()

    async def _output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        while True:
            self._changed.clear()
            while self._queue:
                output, cost = self._queue.popleft()
                self._window.consumed(cost)
                yield output
            if self._exit is not None:
                yield self._exit
                return
            if self._error is not None:
                raise self._error
            if self._hung_up:
                return
            await self._changed.wait()

    async def aclose(self) -> None:
        """Let it go: the command is hung up (SIGHUP), then killed. Idempotent."""
        if self._open:
            self._send(FrameType.HANG_UP)
        self._hung_up = True
        self._queue.clear()
        self._wake()
