"""The HTTP server: uvicorn on a socket that is already bound, without an access log (paths and queries may tell secrets).

The server installs no signal handlers and no logging of its own: both belong to whoever runs it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from shellwego.api.origins import Origins
from shellwego.api.protocol import BoundedHttp, BoundedSocket, Shared
from shellwego.api.rest.app import leave, stop
from shellwego.core.troubles import Troubles

GRACE_S = 5.0
HANDSHAKE_S = 5.0
"""How long that of TLS may take."""
_MAX_CONNECTIONS = 4096
_AT_ONCE = 64
"""So many are taken before anything else has its turn."""
_BREATHER_S = 0.05
_SPENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What a host or process without descriptors or memory answers: clients wait until some are free."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    certificate: Path
    key: Path


async def serve_until_cancelled(serving: Coroutine[None, None, None], stop: Callable[[], None]) -> None:
    """Run a server to its end. One that is cancelled is stopped, and not cut off: what it is at gets its time."""
    task = asyncio.ensure_future(serving)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        await task
        raise


class _Server(uvicorn.Server):
    """Without uvicorn's handling of signals, which would take them from the program that runs it; and with a door of its
    own, since asyncio tells of a connection over TLS only when its handshake is done."""

    def __init__(self, config: uvicorn.Config, origins: Origins) -> None:
        super().__init__(config)
        self.server_state: Shared = Shared()
        self.origins = origins
        self._troubles = Troubles()
        self._open: set[asyncio.Task[None]] = set()
        """Who takes connections, and handshakes under way."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        for listener in sockets or []:
            listener.setblocking(False)
            listener.listen(self.config.backlog)
            self._begin(self._accept(listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await super().shutdown(sockets)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor is free, or the client left
                self._tell(error)
                await asyncio.sleep(_BREATHER_S)
                continue
            self._admit(connection, str(address[0]))
            for another, source in _waiting(listener):
                self._admit(another, source)
            await asyncio.sleep(0)  # a flood of connections leaves room for the rest

    def _tell(self, error: OSError) -> None:
        if error.errno not in _SPENT:
            return
        if trouble := self._troubles.failed("accept", str(error), time.monotonic()):
            _log.warning("api.connections_wait", reason=str(error), **trouble.fields)

    def _admit(self, connection: socket.socket, source: str) -> None:
        leave = self.origins.enter(source)
        if leave is None:
            connection.close()
        else:
            self._begin(self._shake_hands(connection, leave))

    async def _shake_hands(self, connection: socket.socket, leave: Callable[[], None]) -> None:
        """Make a connection of what was accepted; it takes itself off the count in the end, once it is one."""
        protocol = BoundedHttp(self.config, self.server_state, self.lifespan.state)
        protocol.leave = leave
        loop, tls = asyncio.get_running_loop(), self.config.ssl
        timeout = HANDSHAKE_S if tls else None
        try:
            await loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls, ssl_handshake_timeout=timeout)
        except (OSError, EOFError):  # among them all that TLS refuses
            connection.close()
        finally:
            if not protocol.made:
                leave()


def _waiting(listener: socket.socket) -> Iterator[tuple[socket.socket, str]]:
    """Who else is at the door, and from where; not all at once, but many, since a busy loop is seldom back here."""
    for _ in range(_AT_ONCE - 1):
        try:
            connection, address = listener.accept()
        except OSError:  # nobody; or what `sock_accept` meets next
            return
        connection.setblocking(False)
        yield connection, str(address[0])


class ApiServer:
    """Serves an application on a listening socket. `origins` bounds what comes from one address."""

    name = "api"

    def __init__(
        self, app: FastAPI, listener: socket.socket, tls: Tls | None = None, origins: Origins | None = None
    ) -> None:
        self._app = app
        self._listener = listener
        config = uvicorn.Config(
            app,
            http=BoundedHttp,
            ws=BoundedSocket,
            ws_max_size=1024 * 1024,
            ws_per_message_deflate=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=int(GRACE_S),
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
        )
        self._server = _Server(config, origins or Origins())

    async def run(self) -> None:
        """Serve until `stop`, or until cancelled; running requests get a few seconds to end."""
        await serve_until_cancelled(self._server.serve([self._listener]), self.stop)

    async def started(self) -> None:
        """Return when requests are answered."""
        while not self._server.started:  # noqa: ASYNC110 - uvicorn tells by this flag only
            await asyncio.sleep(0.01)

    def leave(self) -> None:
        """Say not to be ready, and end each connection with its next answer; what comes is still served."""
        leave(self._app)
        self._server.server_state.leaving = True

    def stop(self) -> None:
        """Take no new connections, end streams, finish what runs."""
        stop(self._app)
        self._server.should_exit = True
