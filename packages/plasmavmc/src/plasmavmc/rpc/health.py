"""`grpc.health.v1.Health`: whether a service is served, asked once or watched.

Not gRPC's own servicer: that one writes to a watcher while it holds the lock that every change needs, so one watcher that
reads nothing (a flow-control window of 0) keeps the server from telling anything, and from ending. Here a change is noted
at once and never waits; each watcher reads by itself what holds now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from plasmavmc.rpc.gate import Context

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """See the module's head."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._ended = False
        self._news = asyncio.Event()

    def tell(self, service: str, *, serving: bool) -> None:
        """Say of a service whether it is served; nothing is any more after the end."""
        self._serving[service] = serving and not self._ended
        self._news.set()
        self._news = asyncio.Event()

    def end(self) -> None:
        """Nothing is served from now on."""
        self._ended = True
        for service in self._serving:
            self.tell(service, serving=False)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        if request.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return self._status(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told: health_pb2.HealthCheckResponse | None = None
        while True:
            news, now = self._news, self._status(request.service)
            if now != told:
                told = now
                yield now
            else:
                await news.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        serving = self._serving.get(service)
        if serving is None:
            return health_pb2.HealthCheckResponse(status=_UNKNOWN)
        return health_pb2.HealthCheckResponse(status=_SERVING if serving else _NOT_SERVING)
