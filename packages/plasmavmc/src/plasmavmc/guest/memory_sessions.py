"""What runs in a pretended guest beside its workload: the few commands that it knows, and copies of trees."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from plasmavmc.errors import GuestError
from plasmavmc.guest.api import NOT_EXECUTED, ExecExit, ExecOutput
from plasmavmc.types import ExecSpec, LogStream, TerminalSize


class MemoryExecSession:
    """One of the known commands, running. Implements `ExecSession`."""

    def __init__(self, spec: ExecSpec) -> None:
        self._queue: deque[ExecOutput | ExecExit] = deque()
        self._changed = asyncio.Event()
        self._cut = False
        self.ended = False
        self.size = spec.terminal
        name, arguments = spec.command[0], spec.command[1:]
        self._echoes_input = name == "cat"
        match name:
            case "echo":
                self._put(" ".join(arguments).encode() + b"\n")
                self._end(0)
            case "exit":
                self._end(int(arguments[0]) if arguments else 0)
            case "cat" | "sleep":
                pass
            case _:
                self._put(f"{name} was not found in the image\n".encode(), LogStream.STDERR)
                self._end(NOT_EXECUTED["no-such-command"])

    def _put(self, data: bytes, stream: LogStream = LogStream.STDOUT) -> None:
        self._queue.append(ExecOutput(stream, data))
        self._changed.set()

    def _end(self, code: int) -> None:
        if not self.ended:
            self.ended = True
            self._queue.append(ExecExit(code))
            self._changed.set()

    def cut(self) -> None:
        """The channel ended."""
        self._cut = True
        self.ended = True
        self._changed.set()

    async def send(self, data: bytes) -> None:
        """Write to its stdin."""
        if self._echoes_input and not self.ended:
            self._put(data)

    async def send_eof(self) -> None:
        """Close its stdin."""
        if self._echoes_input:
            self._end(0)

    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its pty."""
        self.size = size

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        self._end(128 + number)

    def output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        """What it writes, and last its exit code."""
        return self._output()

    async def _output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        while True:
            while self._queue:
                item = self._queue.popleft()
                yield item
                if isinstance(item, ExecExit):
                    return
            if self._cut:
                raise GuestError("guest-gone", "the guest's channel ended")
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self) -> None:
        """Let it go."""
        self._end(129)


class MemoryCopy:
    """A copy under way. Implements `ExecSession`; `content` is None for one that comes in."""

    def __init__(self, copied: dict[str, bytes], path: str, content: bytes | None) -> None:
        self._copied = copied
        self._path = path
        self._content = content
        self._received = bytearray()
        self._done = asyncio.Event()

    async def send(self, data: bytes) -> None:
        """A piece of the archive."""
        self._received += data

    async def send_eof(self) -> None:
        """Its end."""
        self._copied[self._path] = bytes(self._received)
        self._done.set()

    async def resize(self, size: TerminalSize) -> None:
        """It has no terminal."""

    async def signal(self, number: int) -> None:
        """It takes none."""

    def output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        """The archive, or only the end."""
        return self._output()

    async def _output(self) -> AsyncIterator[ExecOutput | ExecExit]:
        if self._content is None:
            await self._done.wait()
        else:
            yield ExecOutput(LogStream.STDOUT, self._content)
        yield ExecExit(0)

    async def aclose(self) -> None:
        """Let it go."""
