"""Dials a server's node port for a link: a WebSocket over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp

from shellwego.core.errors import UnavailableError
from shellwego.wire import uplink
from shellwego.wire.sockets import MAX_MESSAGE, WebSocketFrames
from shellwego.wire.tls import SERVER_NAME, Credentials, client_context

DIAL_S = 10.0


class WebSocketDialler:
    """See `drivers.streams.dialled.Dial`; the credentials are asked for at each dial, so that renewed ones are used."""

    def __init__(self, credentials: Callable[[], Credentials]) -> None:
        self._credentials = credentials

    @asynccontextmanager
    async def __call__(self, server: str) -> AsyncIterator[WebSocketFrames]:
        """Connected within the context.

        Raises:
            UnavailableError: no server of this platform answers there, or it does not let this node in.
            InvalidError: the credentials cannot be used, or the server is too old or too new.
        """
        credentials = self._credentials()
        connector = aiohttp.TCPConnector(ssl=client_context(credentials.authorities, credentials), force_close=True)
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        try:
            yield await self._connect(session, connector, server)
        finally:
            await connector.close(abort_ssl=True)
            await session.close()

    async def _connect(
        self, session: aiohttp.ClientSession, connector: aiohttp.TCPConnector, server: str
    ) -> WebSocketFrames:
        try:
            async with asyncio.timeout(DIAL_S):
                socket = await session.ws_connect(
                    f"{server.rstrip('/')}{uplink.BASE}{uplink.LINK}",
                    headers={uplink.PROTOCOL_HEADER: str(uplink.PROTOCOL)},
                    server_hostname=SERVER_NAME,
                    max_msg_size=MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
                )
        except aiohttp.WSServerHandshakeError as error:
            raise UnavailableError("link-refused", f"the server at {server} refuses a link ({error.status})") from None
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            raise UnavailableError(
                "link-failed", f"no link to the server at {server} ({type(error).__name__}: {error})"
            ) from None
        return WebSocketFrames(socket, lambda: connector.close(abort_ssl=True))
