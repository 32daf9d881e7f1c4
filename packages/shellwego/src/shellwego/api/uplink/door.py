"""Who may connect to the node port, how many at once, and how long without saying who he is.

Theory. Whoever has no certificate can only join, so he gets little: few connections at once, fewer from one address, and
seconds to be done. What he takes up is counted before the handshake, since that is work already. So nodes are strangers,
too, until theirs is done; where one came in lately there is room for the next, or strangers could shut all of them out. Who
has a certificate gets connections enough for what an agent does, and no more. A connection too many is closed at once,
without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from shellwego.api.uplink.callers import origin_of
from shellwego.wire.tls import Credentials, peer_of, server_context

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_PROVEN = 4096
"""Addresses that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the port bears."""

    strangers: int = 1024
    """Connections in their handshake or without a certificate; those of addresses that nodes come from go beyond."""
    strangers_of_address: int = 128
    """Of IPv6 a /64 counts as one."""
    handshake_s: float = 5.0
    stranger_s: float = 20.0
    """From its handshake, for all that one without a certificate does."""
    idle_s: float = 60.0
    """Between calls on one connection, until the next one's head is complete."""
    of_key: int = 32
    """Connections with one certificate's key."""


class Door:
    """Takes connections from a listening socket and gives them to a server."""

    def __init__(
        self, listener: socket.socket, credentials: Callable[[], Credentials], handler: Handler, bounds: Bounds
    ) -> None:
        self._listener = listener
        self._credentials = credentials
        self._bounds = bounds
        self._shown = credentials()
        self._context = server_context(self._shown)
        self._strangers: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._proven: OrderedDict[str, None] = OrderedDict()
        """Where nodes and edges came in from, the latest last."""
        self._shaking: set[asyncio.Task[None]] = set()
        self._server = _Server(self, handler, bounds)

    async def run(self) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        while True:
            try:
                connection, address = await loop.sock_accept(self._listener)
            except OSError:  # no descriptor is free, or the client left
                await asyncio.sleep(0.05)
                continue
            host = origin_of(str(address[0]))
            if not self._has_room(host):
                connection.close()
                continue
            self._strangers[host] += 1
            task = loop.create_task(self._shake_hands(connection, host))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    def _has_room(self, host: str) -> bool:
        if self._strangers[host] >= self._bounds.strangers_of_address:
            return False
        return host in self._proven or self._strangers.total() < self._bounds.strangers

    async def close(self, grace_s: float) -> None:
        """Take no more, let what runs end for a while, then end the rest."""
        self._listener.close()
        for task in self._shaking:
            task.cancel()
        await asyncio.gather(*self._shaking, return_exceptions=True)
        self._server.pre_shutdown()
        await self._server.shutdown(grace_s)

    async def _shake_hands(self, connection: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                self._server,
                connection,
                ssl=self._current_context(),
                ssl_handshake_timeout=self._bounds.handshake_s,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, EOFError):  # among them all that TLS refuses
            connection.close()
        finally:
            self.leave(host)

    def enter(self, handler: web.RequestHandler, transport: asyncio.Transport) -> Callable[[], None] | None:
        """Count a connection whose handshake is done; what takes it off the count again. None: it is one too many."""
        certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        host = origin_of(str((transport.get_extra_info("peername") or ("",))[0]))
        if certificate is None:
            self._strangers[host] += 1
            deadline = asyncio.get_running_loop().call_later(self._bounds.stranger_s, transport.abort)

            def stranger_left() -> None:
                deadline.cancel()
                self.leave(host)

            return stranger_left
        self._prove(host)
        key = peer_of(certificate).key
        if self._keys[key] >= self._bounds.of_key:
            return None
        self._keys[key] += 1
        return lambda: _take_off(self._keys, key)

    def _prove(self, host: str) -> None:
        self._proven[host] = None
        self._proven.move_to_end(host)
        if len(self._proven) > _PROVEN:
            self._proven.popitem(last=False)

    def leave(self, host: str) -> None:
        """A stranger is gone, or is none any more."""
        _take_off(self._strangers, host)

    def _current_context(self) -> ssl.SSLContext:
        shown = self._credentials()
        if shown is not self._shown:
            self._context, self._shown = server_context(shown), shown
        return self._context


_LINGER_S = 0.3
"""What is still under way of a body that was refused is read for so long, so that the refusal is heard."""


_SILENT = logging.Logger("uplink.strangers", logging.CRITICAL)
"""aiohttp would tell of each malformed request, with its traceback: whoever can connect could fill a disk."""


class _Server(web.Server):
    """aiohttp's, which tells the door who comes and goes."""

    def __init__(self, door: Door, handler: Handler, bounds: Bounds) -> None:
        super().__init__(
            handler,
            keepalive_timeout=bounds.idle_s,
            lingering_time=_LINGER_S,
            access_log=None,
            logger=_SILENT,
            auto_decompress=False,
        )
        self._door = door
        self._leaving: dict[web.RequestHandler, Callable[[], None]] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        leave = self._door.enter(handler, transport)
        if leave is None:
            transport.abort()
        else:
            self._leaving[handler] = leave

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        with contextlib.suppress(KeyError):
            self._leaving.pop(handler)()


def _take_off(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]
