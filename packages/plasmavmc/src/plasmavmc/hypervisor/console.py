"""What a VMM and its guest's serial console say, kept in a bounded ring.

Theory. Nothing here may hold a guest up or grow: a reader takes whatever is there and keeps the last part. The text is
hostile (a guest writes to its console what it likes, and people read it on terminals), so control characters are
replaced when lines are taken out.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

from plasmavmc.deadlines import within

RING_BYTES = 64 * 1024
RING_LINES = 200
_CHUNK = 64 * 1024
_AT_EVERY_BOOT = re.compile(r"\[ *\d+\.\d+\] PCI: Fatal: No config space access function found")
"""A kernel calls a machine without PCI fatal, and boots; whoever looks for the cause of an end would take it for one."""


class Ring:
    """The last `RING_BYTES` of a byte stream."""

    def __init__(self, limit: int = RING_BYTES) -> None:
        self._limit = limit
        self._kept = bytearray()

    def write(self, data: bytes) -> None:
        """Append, and forget the oldest beyond the limit."""
        self._kept += data
        del self._kept[: -self._limit]

    def lines(self, count: int = RING_LINES) -> tuple[str, ...]:
        """The last `count` lines that say something, fit for a terminal."""
        texts = (_printable(line) for line in self._kept.decode(errors="replace").splitlines())
        return tuple(text for text in texts if text.strip() and not _AT_EVERY_BOOT.fullmatch(text))[-count:]


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in line)


class Tail:
    """Reads a descriptor, which it owns, into a ring until its end."""

    def __init__(self, fd: int) -> None:
        self.ring = Ring()
        self._fd = fd
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    async def ended(self, timeout_s: float) -> None:
        """Return at the end of the stream, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with within(timeout_s):
                await self._ended.wait()

    def close(self) -> None:
        """Stop reading; what was read stays. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._ended.set()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.ring.write(data)
        else:
            self.close()


def connect_console(path: Path) -> Tail:
    """Read a console by its listening socket. Never waits: the connection queues until QEMU accepts it.

    Raises:
        OSError: nobody listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        client.connect(str(path))
        return Tail(client.detach())
