"""The gRPC server: the engine's services over the platform, behind its tokens; with health and reflection.

It stops as the REST server does: health says so first, calls under way have a little time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from plasmavmc.errors import PlasmaError
from plasmavmc.rpc.gate import Gate
from plasmavmc.rpc.opening import bind_bearer, open_server
from plasmavmc.rpc.services import Services
from shellwego.api.grpc.callers import Callers, TokenAuthorizer
from shellwego.api.grpc.feed import VmFeed
from shellwego.api.grpc.images import PlatformImages
from shellwego.api.grpc.nodes import PlatformNodes
from shellwego.api.grpc.vms import PlatformVms, choose_instance_id
from shellwego.api.ratelimit import RateLimiter
from shellwego.api.server import GRACE_S, Tls, serve_until_cancelled
from shellwego.control.imagework import ImageWork
from shellwego.control.unit import Control
from shellwego.core.errors import UnavailableError
from shellwego.ports.streams import Streams


@dataclass(frozen=True, slots=True)
class GrpcSite:
    """Where it listens. Without TLS the address must be a loopback's."""

    host: str
    port: int
    """0: any free one."""
    tls: Tls | None = None


class GrpcServer:
    """Serves from `run` until `stop`, or until cancelled."""

    name = "grpc"

    def __init__(
        self, control: Control, *, images: ImageWork, streams: Streams, site: GrpcSite, limiter: RateLimiter
    ) -> None:
        self._site = site
        self._callers = callers = Callers(control, limiter)
        self._services = Services(
            PlatformVms(control, streams, callers, VmFeed(control)),
            PlatformImages(control, images, callers),
            PlatformNodes(control, callers),
            choose=choose_instance_id,
        )
        self._gate = Gate(callers.identify, TokenAuthorizer(control))
        self._port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve until `stop`, or until cancelled; running calls get a few seconds to end.

        Raises:
            UnavailableError: it cannot listen.
        """
        await serve_until_cancelled(self._serve(), self.stop)

    async def _serve(self) -> None:
        server = open_server(self._gate, self._services.enter)
        try:
            port = bind_bearer(server, f"{_bracketed(self._site.host)}:{self._site.port}", _pem(self._site.tls))
        except PlasmaError as error:
            raise UnavailableError("grpc-port-taken", error.brief, resolution="Choose another --grpc-port.") from error
        async with self._services:
            await self._services.tell_ready(ready=True)
            await server.start()
            self._port.set_result(port)
            await self._callers.stopping.wait()
            await self._services.tell_end()
            await server.stop(GRACE_S)

    async def started(self) -> int:
        """The port, once calls are answered."""
        return await asyncio.shield(self._port)

    def stop(self) -> None:
        """Take no new calls, finish what runs."""
        self._callers.stopping.set()


def _bracketed(host: str) -> str:
    """An IPv6 address as gRPC wants it."""
    return f"[{host}]" if ":" in host else host


def _pem(tls: Tls | None) -> tuple[bytes, bytes] | None:
    return None if tls is None else (tls.key.read_bytes(), tls.certificate.read_bytes())
