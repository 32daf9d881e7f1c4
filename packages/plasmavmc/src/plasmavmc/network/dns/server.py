"""The resolver on its sockets: datagrams and connections.

A datagram is answered where it is read, a burst at a time, unless others have to be asked. A connection is closed when it
says nothing for a while, sooner where there are many, or does not take its answers; one asker has a few, and a network no
more than leaves as many to the next (`shares`).
Source: RFC 7766 (DNS over TCP).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

from plasmavmc.deadlines import within
from plasmavmc.network.dns import wire
from plasmavmc.network.dns.forward import Forwarder
from plasmavmc.network.dns.progress import SAID_EVERY_S
from plasmavmc.network.dns.resolver import Resolver, ToForward, limit_of
from plasmavmc.network.dns.shares import Shares

_BURST = 64
"""Datagrams that are read before others have their turn."""
_LARGEST = 4096
"""Bytes of a question, also by a connection: one with all its options is far shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of connections: numbers, and seconds."""

    of_all: int = 512
    of_network: int = 128
    of_asker: int = 16
    at_once: int = 8
    """Questions of one connection under way, so also how many answers may wait for who does not take them."""
    idle_s: float = 10.0
    idle_where_crowded_s: float = 2.0


class DnsServer:
    """Serves until `close`; the sockets are its own."""

    def __init__(
        self,
        udp: socket.socket,
        tcp: socket.socket,
        resolver: Resolver,
        forwarder: Forwarder,
        *,
        say: Callable[[], None] = lambda: None,
        bounds: Bounds | None = None,
    ) -> None:
        """`say` is called once a second in which there were questions by datagrams, and they were dealt with."""
        self._udp = udp
        self._tcp = tcp
        self._resolver = resolver
        self._forwarder = forwarder
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._say = say
        self._dealt = False
        self._bounds = bounds = bounds or Bounds()
        self._connections = Shares(bounds.of_all, of_group=bounds.of_network, of_one=bounds.of_asker)
        self._second: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to answer."""
        self._udp.setblocking(False)
        self._loop.add_reader(self._udp, self._on_datagrams)
        self._server = await asyncio.start_server(self._on_connection, sock=self._tcp, limit=_LARGEST)

    async def close(self) -> None:
        """Stop; what is under way gets no answer."""
        self._loop.remove_reader(self._udp)
        self._udp.close()
        if self._server is not None:
            self._server.close()
        if self._second is not None:
            self._second.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._forwarder.close()

    def _on_datagrams(self) -> None:
        self._count()
        receive, hear = self._udp.recvfrom, self._resolver.hear
        for _ in range(_BURST):
            try:
                data, address = receive(_LARGEST)
            except OSError:  # nothing is left, or somebody whom we answered is gone
                return
            answer = hear(data, address[0], udp=True)
            if isinstance(answer, bytes):
                self._send(answer, address)
            elif answer is not None:
                self._forward(answer, address)
            self._dealt = True

    def _send(self, answer: bytes, address: tuple[str, int]) -> None:
        with suppress(OSError):  # the buffer is full, or there is no way: who asked asks again
            self._udp.sendto(answer, address)

    def _forward(self, asked: ToForward, address: tuple[str, int]) -> None:
        limit = limit_of(asked.query, udp=True)
        known = self._forwarder.known(asked.query)
        if known is not None:
            self._send(known[0].to(asked.query, known[1], limit), address)
        else:
            self._beside(self._ask(asked, address, limit))

    async def _ask(self, asked: ToForward, address: tuple[str, int], limit: int) -> None:
        found = await self._forwarder.ask(asked.query, asked.asker, asked.network)
        self._send(found.to(asked.query, 0, limit), address)

    def _beside(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _count(self) -> None:
        """Begin a new second a second from now; nothing wakes us while nobody asks."""
        if self._second is None:
            self._second = self._loop.call_later(SAID_EVERY_S, self._new_second)

    def _new_second(self) -> None:
        self._second = None
        self._resolver.new_second()
        if self._dealt:
            self._dealt = False
            self._say()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asker = str((writer.get_extra_info("peername") or ("",))[0])
        network = self._resolver.network_of(asker)
        writer.transport.set_write_buffer_limits(0)  # so that what is drained is sent
        try:
            if self._connections.has_for(asker, network):
                with self._connections.taken(asker, network), suppress(OSError, EOFError, TimeoutError):
                    await self._converse(reader, writer, asker)
        finally:
            writer.transport.abort()

    @property
    def _idle_s(self) -> float:
        return self._bounds.idle_where_crowded_s if self._connections.crowded else self._bounds.idle_s

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asker: str) -> None:
        room = asyncio.Semaphore(self._bounds.at_once)
        async with asyncio.TaskGroup() as answers:
            while True:
                await room.acquire()
                try:
                    async with within(self._idle_s):
                        length = int.from_bytes(await reader.readexactly(2), "big")
                        if length > _LARGEST:
                            return
                        data = await reader.readexactly(length)
                except (OSError, EOFError, TimeoutError):
                    return
                answers.create_task(self._answer(data, asker, writer, room))

    async def _answer(self, data: bytes, asker: str, writer: asyncio.StreamWriter, room: asyncio.Semaphore) -> None:
        try:
            self._count()
            answer = self._resolver.hear(data, asker, udp=False)
            if isinstance(answer, ToForward):
                answer = await self._forwarded(answer)
            if answer is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with within(self._bounds.idle_s):
                    await writer.drain()
        except (OSError, TimeoutError):  # what he does not take must not pile up here
            writer.transport.abort()
        finally:
            room.release()

    async def _forwarded(self, asked: ToForward) -> bytes:
        known = self._forwarder.known(asked.query)
        found, age = known or (await self._forwarder.ask(asked.query, asked.asker, asked.network), 0)
        return found.to(asked.query, age, wire.MAX_MESSAGE)
