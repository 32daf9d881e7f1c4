"""Downloads of blobs, memories and volumes over the uplink, from whichever server has them.

A blob that each server that answers says it has not is told to be nowhere also where another does not answer, once that has
lasted for a while: else nobody would fetch it again for as long as a server that died is remembered. Who could not fetch it
again says that no while is enough.

They have connections of their own, so that a large image holds up no report. A download that breaks goes on at the next
server, from the byte where it broke.

Each connection is ended by the reader, never by the server at the end of its answer ("Connection: close"): uvloop loses what
it has decrypted of the rest where its reader is slower than the network and the other end does not wait for that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import aiohttp

from shellwego.core.errors import NotFoundError, ShellWeGoError, UnavailableError
from shellwego.drivers.uplink.rota import Rota
from shellwego.drivers.uplink.tls import no_answer, read_whole, refused
from shellwego.wire import uplink
from shellwego.wire.tls import SERVER_NAME, Credentials, client_context

CONNECT_S = 5.0
STALL_S = 20.0
"""A server that sends nothing for so long is given up."""
ABSENT_S = 30.0
"""From the first time at which all that answered said that they have not a blob, which is longer than a server takes that is
begun anew."""
_FORGET_S = 120.0
"""After so long without being asked for again, a blob is looked for as if for the first time."""
_MOST_ABSENT = 1_000
_AT_ONCE = 8
_CHUNK = 256 * 1024


class Downloads:
    """What one node, or server, downloads."""

    def __init__(
        self,
        servers: Callable[[], Sequence[str]],
        credentials: Callable[[], Credentials],
        *,
        stall_s: float = STALL_S,
        absent_s: float = ABSENT_S,
        at_once: int = _AT_ONCE,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._rota = Rota(servers, jitter)
        self._credentials = credentials
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=stall_s)
        self._absent_s = absent_s
        self._at_once = asyncio.Semaphore(at_once)
        self._absent: dict[str, tuple[float, float]] = {}
        """By digest: since when those that answer say that they have it not, and when they did last."""

    async def blob(self, digest: str, offset: int = 0) -> AsyncGenerator[bytes]:
        """The blob from an offset on. Its reader checks the digest.

        Raises:
            NotFoundError: every server answers, and none has it for this node; or, for a while, each that answers.
            UnavailableError: it cannot be had now; what came may be kept.
            ShellWeGoError: what a server refused it with.
        """
        absent: NotFoundError | None = None
        trouble: UnavailableError | None = None
        for url in self._rota.order(_now()):
            try:
                async with self._at_once, aclosing(self._from(url, f"{uplink.BLOBS}{digest}", offset)) as chunks:
                    async for chunk in chunks:
                        self._absent.pop(digest, None)
                        offset += len(chunk)
                        yield chunk
            except NotFoundError as error:
                self._rota.failed(url, _now())
                absent = error
            except UnavailableError as error:
                self._rota.failed(url, _now())
                trouble = error
            else:
                self._rota.answered(url, _now())
                return
        if absent is not None and (trouble is None or self._is_absent(digest, _now())):
            raise absent
        raise trouble or UnavailableError("uplink-unavailable", "this node knows no server")

    def _is_absent(self, digest: str, now: float) -> bool:
        """Take note that those that answer have it not; True where that has lasted."""
        since, last = self._absent.get(digest, (now, now))
        if now - last > _FORGET_S:
            since = now
        if len(self._absent) >= _MOST_ABSENT:
            self._absent.clear()
        self._absent[digest] = since, now
        return now - since >= self._absent_s

    async def memory(self, node_id: str, instance_id: str) -> AsyncGenerator[bytes]:
        """See `ports.uplink.Memories`; the servers know by its key which node it is. One that broke off is not gone on
        with at another server: its reader begins anew."""
        async with aclosing(self._whole(f"{uplink.MEMORIES}{instance_id}")) as chunks:
            async for chunk in chunks:
                yield chunk

    async def replica(self, node_id: str, replica_id: str, snapshot_id: str, since: str) -> AsyncGenerator[bytes]:
        """See `ports.uplink.Replicas`; as `memory`."""
        names = [replica_id, snapshot_id, *([since] if since else [])]
        async with aclosing(self._whole(f"{uplink.REPLICAS}{'/'.join(names)}")) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _whole(self, path: str) -> AsyncGenerator[bytes]:
        trouble: ShellWeGoError | None = None
        for url in self._rota.order(_now()):
            begun = False
            try:
                async with self._at_once, aclosing(self._from(url, path, 0)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
            except UnavailableError as error:
                self._rota.failed(url, _now())
                if begun:
                    raise
                trouble = error
            else:
                self._rota.answered(url, _now())
                return
        raise trouble or UnavailableError("uplink-unavailable", "this node knows no server")

    async def _from(self, url: str, path: str, offset: int) -> AsyncGenerator[bytes]:
        credentials = self._credentials()
        headers = {uplink.PROTOCOL_HEADER: str(uplink.PROTOCOL)}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        connector = aiohttp.TCPConnector(ssl=client_context(credentials.authorities, credentials))
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=self._timeout,
        )
        try:
            async with (
                session,
                session.get(
                    f"{url}{uplink.BASE}{path}",
                    headers=headers,
                    server_hostname=SERVER_NAME,
                    allow_redirects=False,
                ) as response,
            ):
                if response.status != (206 if offset else 200):
                    raise refused(url, response.status, await read_whole(response))
                async for chunk in response.content.iter_chunked(_CHUNK):
                    yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise no_answer(url, error, credentials) from None


def _now() -> float:
    return asyncio.get_running_loop().time()
