"""The server of the node port: each request passes the same gate, in the same order.

Version, then who calls, then how often, then the body within its bounds, then whether it speaks for its caller only; what
fails is told as a code with words and a remedy, and what has no words of its own as the server's absence: the caller keeps
what runs and tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping

import structlog
from aiohttp import web

from shellwego.api.rest.problems import status_of
from shellwego.api.uplink.blobs import send_blob
from shellwego.api.uplink.bodies import Bodies
from shellwego.api.uplink.callers import Callers
from shellwego.api.uplink.door import Bounds, Door
from shellwego.api.uplink.methods import AnyServed, Served
from shellwego.api.uplink.transfers import send_memory, send_replica
from shellwego.control.nodeimages import NodeImages
from shellwego.core.errors import MalformedError, NotFoundError, ShellWeGoError, UnauthenticatedError, UnavailableError
from shellwego.core.nodecallers import Caller, NodeCaller
from shellwego.core.plans import Rate
from shellwego.ports.bus import Bus
from shellwego.ports.uplink import Memories, Replicas
from shellwego.wire import subjects, uplink
from shellwego.wire.codec import encode
from shellwego.wire.links import Links
from shellwego.wire.sockets import MAX_MESSAGE, WebSocketFrames
from shellwego.wire.tls import Credentials, Peer, peer_of
from shellwego.wire.uplink import Side

GRACE_S = 5.0
_LINKS = Rate(per_minute=60, burst=60)
_MEMORIES = Rate(per_minute=120, burst=120)
"""Each is audited before its first byte."""
_REPLICAS = Rate(per_minute=1200, burst=240)
"""A node may keep many copies, each of which is brought up every few seconds."""

_log = structlog.get_logger(__name__)


class UplinkServer:
    """Serves nodes and edges on a listening socket, from `run` until `stop`, or until cancelled.

    `credentials` is asked at each connection, so that renewed ones are shown and exchanged authorities believed at once.
    """

    name = "uplink"

    def __init__(
        self,
        listener: socket.socket,
        *,
        credentials: Callable[[], Credentials],
        served: Mapping[str, AnyServed],
        callers: Callers,
        links: Links,
        bus: Bus,
        images: NodeImages | None = None,
        memories: Memories | None = None,
        replicas: Replicas | None = None,
        bounds: Bounds | None = None,
        bodies: Bodies | None = None,
    ) -> None:
        self._door = Door(listener, credentials, self._handle, bounds or Bounds())
        self._served = served
        self._callers = callers
        self._links = links
        self._bus = bus
        self._images = images
        self._memories = memories
        self._replicas = replicas
        self._bodies = bodies or Bodies()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`, or until cancelled; running calls get a few seconds to end, links end at once."""
        serving = asyncio.create_task(self._door.run())
        try:
            await self._stopping.wait()
        finally:
            self.stop()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await self._door.close(GRACE_S)

    async def started(self) -> None:
        """Return when calls are answered: the socket listens already."""

    def stop(self) -> None:
        """Take no new calls, end links, finish what runs."""
        self._stopping.set()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        method = request.path.removeprefix(uplink.BASE)
        peer = _shown(request)
        try:
            if peer is None:
                self._callers.count_stranger(request.remote or "")
            uplink.check_protocol(request.headers.get(uplink.PROTOCOL_HEADER), Side.AGENT)
            if method == uplink.LINK:
                return await self._link(request, _known(peer))
            if request.method == "GET" and (sent := await self._download(request, method, peer)) is not None:
                return sent
            return _response(200, await self._answer(request, method, peer))
        except ShellWeGoError as error:
            return _refused(error)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - see the module's head
            _log.exception("uplink.call_failed", method=method[:64])
            return _refused(UnavailableError("uplink-unavailable", "the control plane failed at this call"))

    async def _download(self, request: web.BaseRequest, method: str, peer: Peer | None) -> web.StreamResponse | None:
        """None: this server has no such downloads."""
        if self._images is not None and method.startswith(uplink.BLOBS):
            return await self._blob(request, _known(peer), self._images)
        if self._memories is not None and method.startswith(uplink.MEMORIES):
            async with self._callers.call(_known(peer)) as caller:
                self._callers.count_method(_known(peer), uplink.MEMORIES, _MEMORIES)
                return await send_memory(request, caller, self._memories)
        if self._replicas is not None and method.startswith(uplink.REPLICAS):
            async with self._callers.call(_known(peer)) as caller:
                self._callers.count_method(_known(peer), uplink.REPLICAS, _REPLICAS)
                return await send_replica(request, caller, self._replicas)
        return None

    async def _blob(self, request: web.BaseRequest, peer: Peer, images: NodeImages) -> web.StreamResponse:
        """The one thing that servers have of one another."""
        if peer.server:
            with self._callers.fellow(peer):
                return await send_blob(request, None, images)
        async with self._callers.call(peer) as caller:
            return await send_blob(request, caller, images)

    async def _answer(self, request: web.BaseRequest, method: str, peer: Peer | None) -> object:
        served = self._served.get(method)
        if served is None or request.method != "POST":
            raise NotFoundError(
                "uplink-method-unknown",
                f"this server knows no method {method[:64]!r}",
                resolution="It may be older than its caller: update the servers first.",
            )
        if not isinstance(served, Served):
            return await served.answer(await self._bodies.read(request, served.question, served.max_body))
        known = _known(peer)
        async with self._callers.call(known) as caller:
            if served.rate is not None:
                self._callers.count_method(known, method, served.rate)
            self._callers.count_body(known, min(request.content_length or 0, served.max_body))
            asked = await self._bodies.read(request, served.question, served.max_body)
            return await served.answer(caller, asked)

    async def _link(self, request: web.BaseRequest, peer: Peer) -> web.StreamResponse:
        self._callers.count_method(peer, uplink.LINK, _LINKS)
        async with self._callers.call(peer) as found:
            caller = found
        response = web.WebSocketResponse(
            max_msg_size=MAX_MESSAGE, compress=False, timeout=0.5, autoclose=False, autoping=False
        )
        response.headers[uplink.PROTOCOL_HEADER] = str(uplink.PROTOCOL)
        try:
            await response.prepare(request)
        except web.HTTPException as error:
            raise MalformedError("uplink-no-websocket", f"a link is a WebSocket: {error.text}") from None
        await self._carry(peer, caller, WebSocketFrames(response, lambda: _abort(request)))
        return response

    async def _carry(self, peer: Peer, caller: Caller, frames: WebSocketFrames) -> None:
        """Keep a link until it ends, its key is retired, or the server stops."""
        async with self._hints(caller) as hints:
            ends = [
                asyncio.create_task(part)
                for part in (
                    self._links.carry(caller.id, frames, hints),
                    self._callers.until_shut_out(peer, caller),
                    self._stopping.wait(),
                )
            ]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in ends:
                    task.cancel()
                results = await asyncio.gather(*ends, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                _log.error("uplink.link_failed", caller=caller.id, exc_info=result)
            elif isinstance(result, str):
                _log.warning("uplink.shut_out", caller=caller.id, reason=result)

    @contextlib.asynccontextmanager
    async def _hints(self, caller: Caller) -> AsyncIterator[AsyncIterator[str]]:
        """The subjects that concern a caller; the first one at once, since hints before it were missed."""
        pattern, first = (
            (f"node.{caller.node_id}.>", subjects.assignments(caller.node_id))
            if isinstance(caller, NodeCaller)
            else (subjects.ROUTES, subjects.ROUTES)
        )

        async with self._bus.subscribe(pattern) as heard:

            async def told() -> AsyncIterator[str]:
                yield first
                async for hint in heard:
                    yield hint.subject

            yield told()


def _shown(request: web.BaseRequest) -> Peer | None:
    """Whose certificate the connection has; None: it has none."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    return None if certificate is None else peer_of(certificate)


def _known(peer: Peer | None) -> Peer:
    """Raises `UnauthenticatedError` for a stranger."""
    if peer is None:
        raise UnauthenticatedError(
            "uplink-no-certificate",
            "only a node or edge with a certificate of this platform may call this",
            resolution="Join the host first: swg nodes join-token tells how.",
        )
    return peer


async def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _response(status: int, answer: object) -> web.Response:
    return web.Response(
        status=status,
        body=encode(answer),
        content_type=uplink.MEDIA_TYPE,
        headers={uplink.PROTOCOL_HEADER: str(uplink.PROTOCOL)},
    )


def _refused(error: ShellWeGoError) -> web.Response:
    response = _response(status_of(error), uplink.refusal_of(error))
    if isinstance(error, MalformedError):
        response.force_close()  # what of its body is still under way is of no use
    return response
