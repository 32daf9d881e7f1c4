"""The C init's loop as a plain process, behind a socket as QEMU's port is: for tests of the real channel without a VM.

`PortProxy` stands for QEMU's chardev: one host at a time, bytes of the guest wait while none is there, and the guest sees
no hang-up (the "missed HUP" of docs/design/guest-channel.md); it can cut the connection at an exact byte.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from plasmavmc.guest.api import ExecExit, ExecSession, GuestConfig, GuestEvent
from plasmavmc.guest.boot import init_sources
from plasmavmc.guest.channel import SocketGuestChannel
from plasmavmc.guest.opening import open_channel
from plasmavmc.types import LogStream

DEADLINE_S = 20.0


async def build(target: str, out: Path) -> Path:
    """Build one target of the init's Makefile into `out`."""
    process = await asyncio.create_subprocess_exec(
        "make", "-s", "-C", str(init_sources()), f"OUT={out}", str(out / target), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out / target


class PortProxy:
    """Between the guest's end of a socket pair and whoever connects to `path`."""

    def __init__(self, path: Path, guest: socket.socket) -> None:
        self.path = path
        self._guest = guest
        self._host: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        for end in (self._listener, self._guest):
            end.setblocking(False)
        self.cut_after: int | None = None
        """Hang up on the host after so many bytes from it."""
        self._serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._host, _ = await loop.sock_accept(self._listener)
            self._host.setblocking(False)
            down = asyncio.create_task(self._to_guest(self._host))
            up = asyncio.create_task(self._to_host(self._host))
            await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
            for task in (down, up):
                task.cancel()
            await asyncio.gather(down, up, return_exceptions=True)
            self._host.close()

    async def _to_guest(self, host: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(host, 65536):
            if self.cut_after is not None and len(data) >= self.cut_after:
                await loop.sock_sendall(self._guest, data[: self.cut_after])
                self.cut_after = None
                return
            if self.cut_after is not None:
                self.cut_after -= len(data)
            await loop.sock_sendall(self._guest, data)

    async def _to_host(self, host: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while data := await loop.sock_recv(self._guest, 65536):
                await loop.sock_sendall(host, data)

    async def close(self) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        for end in (self._listener, self._guest, self._host):
            if end is not None:
                end.close()


class Guest:
    """A running loop and the way to it."""

    def __init__(self, process: asyncio.subprocess.Process, proxy: PortProxy) -> None:
        self.process = process
        self.proxy = proxy
        self.channels: list[SocketGuestChannel] = []

    async def open(self, *, fresh: bool = False) -> SocketGuestChannel:
        channel = await open_channel(self.proxy.path, fresh=fresh, deadline_s=DEADLINE_S)
        self.channels.append(channel)
        return channel

    async def start(self, *argv: str, **config: object) -> SocketGuestChannel:
        """Open a fresh channel and tell the guest what to run."""
        channel = await self.open(fresh=True)
        await channel.configure(GuestConfig(argv=argv, **config))  # type: ignore[arg-type]
        return channel

    async def ended(self) -> str:
        """What the loop printed at its end."""
        output, errors = await asyncio.wait_for(self.process.communicate(), DEADLINE_S)
        assert self.process.returncode == 0, errors.decode()
        return output.decode()

    def memory_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def loopback(program: Path, directory: Path) -> AsyncIterator[Guest]:
    """A guest's loop in a process of its own; killed at the end if it still runs."""
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        str(program),
        str(theirs.fileno()),
        pass_fds=(theirs.fileno(),),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    theirs.close()
    guest = Guest(process, PortProxy(directory / "ctl", ours))
    try:
        yield guest
    finally:
        for channel in guest.channels:
            await channel.aclose()
        await guest.proxy.close()
        if process.returncode is None:
            end_tree(process.pid)
        await process.communicate()


def end_tree(pid: int) -> None:
    """Kill a process and all that descends from it (the loop adopts its orphans)."""
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            end_tree(int(child))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def next_of(channel: SocketGuestChannel, kind: type[GuestEvent]) -> GuestEvent:
    """The next event of this kind; others are passed over."""
    async with asyncio.timeout(DEADLINE_S):
        async for event in channel.events():
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the channel ended before a {kind.__name__}")


async def finish(session: ExecSession) -> tuple[str, str, int]:
    """stdout, stderr and code of a command."""
    written = {LogStream.STDOUT: b"", LogStream.STDERR: b""}
    async with asyncio.timeout(DEADLINE_S):
        async for item in session.output():
            if isinstance(item, ExecExit):
                return written[LogStream.STDOUT].decode(), written[LogStream.STDERR].decode(), item.code
            written[item.stream] += item.data
    raise AssertionError("no exit code came")
