"""The HTTP server: uvicorn on a socket that is already bound, without an access log (paths and queries may tell secrets).

The server installs no signal handlers and no logging of its own: both belong to whoever runs it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from shellwego.api.origins import Origins
from shellwego.api.protocol import BoundedHttp, BoundedSocket, Shared
from shellwego.api.rest.app import leave, stop

GRACE_S = 5.0
_MAX_CONNECTIONS = 4096


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
    """Without uvicorn's handling of signals, which would take them from the program that runs it."""

    def __init__(self, config: uvicorn.Config, origins: Origins) -> None:
        super().__init__(config)
        self.server_state: Shared = Shared(origins)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


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
