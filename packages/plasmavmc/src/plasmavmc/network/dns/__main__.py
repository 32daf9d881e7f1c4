"""The resolver's process: `python -m plasmavmc.network.dns RUN_DIR STATE_DIR`, with its two sockets as descriptors 3 and 4.

It lives apart from the engine that starts it (`keeper`), and goes on while everything else is killed: all it needs are the
two files (`names`) and the host's list of resolvers. SIGHUP says that a file is new; it looks by itself now and then, too,
and when somebody asks whom it does not know. SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from plasmavmc.deadlines import within
from plasmavmc.network.dns import progress
from plasmavmc.network.dns.forward import Forwarder, Upstream
from plasmavmc.network.dns.names import MEMBERS_FILE, NAMES_FILE, read_askers, read_names
from plasmavmc.network.dns.resolver import Resolver
from plasmavmc.network.dns.server import DnsServer
from plasmavmc.network.dns.upstreams import host_resolvers

UDP_SOCKET, TCP_SOCKET = 3, 4
LOOK_EVERY_S = 5.0
STRANGER_LOOKS_S = 0.02
"""Between two looks that strangers cause."""

_Mark = tuple[int, int, int]


class Files:
    """What the resolver knows, kept as the files have it."""

    def __init__(self, run_dir: Path, state_dir: Path) -> None:
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._marks: dict[Path, _Mark | None] = {}
        self._next_for_strangers = 0.0
        self.resolver = Resolver(self._look_for_stranger)

    def look(self) -> None:
        """Read what is new."""
        if self._is_new(self._state_dir / NAMES_FILE):
            names = read_names(self._state_dir)
            if names is not None:
                self.resolver.tell_names(names)
        if self._is_new(self._run_dir / MEMBERS_FILE):
            askers = read_askers(self._run_dir)
            if askers is not None:
                self.resolver.tell_askers(askers)

    def say_progress(self) -> None:
        """Questions were dealt with."""
        progress.say(self._run_dir)

    def _look_for_stranger(self) -> None:
        now = time.monotonic()
        if now >= self._next_for_strangers:
            self._next_for_strangers = now + STRANGER_LOOKS_S
            self.look()

    def _is_new(self, path: Path) -> bool:
        try:
            status = path.stat()
        except OSError:
            return False
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._marks.get(path)
        self._marks[path] = mark
        return mark != known


class Upstreams:
    """The host's resolvers, read anew now and then."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._known: tuple[Upstream, ...] = ()
        self._until = 0.0

    def __call__(self) -> tuple[Upstream, ...]:
        now = time.monotonic()
        if now >= self._until:
            self._until = now + LOOK_EVERY_S
            self._known = tuple((address, 53) for address in host_resolvers() if address != self._own)
        return self._known


async def serve(
    files: Files, udp: socket.socket, tcp: socket.socket, upstreams: Callable[[], tuple[Upstream, ...]]
) -> None:
    """Answer until SIGTERM."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGHUP, files.look)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # held back by who started us, until now
    files.look()
    server = DnsServer(udp, tcp, files.resolver, Forwarder(upstreams, loop.time), say=files.say_progress)
    await server.open()
    while not ended.is_set():
        with suppress(TimeoutError):
            async with within(LOOK_EVERY_S):
                await ended.wait()
        files.look()
    await server.close()


def main() -> int:
    """The whole life of the process."""
    run_dir, state_dir = map(Path, sys.argv[1:3])
    os.umask(0o077)
    udp, tcp = socket.socket(fileno=UDP_SOCKET), socket.socket(fileno=TCP_SOCKET)
    gc.freeze()  # what was imported stays for good
    upstreams = Upstreams(own=str(udp.getsockname()[0]))
    asyncio.run(serve(Files(run_dir, state_dir), udp, tcp, upstreams))
    return 0


if __name__ == "__main__":
    sys.exit(main())
