"""The edge as the control plane sees it: registers, fetches routes, reports what it applied.

Two tasks that share nothing but the last table and the last status. `Ingress` keeps HAProxy on the table; this one talks to
the control plane, which may be slow or away for hours: HAProxy is then rebuilt and kept all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from dataclasses import replace

import structlog

from shellwego.core.errors import ForbiddenError, ShellWeGoError
from shellwego.core.routing import EdgeReport
from shellwego.core.troubles import Troubles
from shellwego.edge.haproxy import Haproxy, Listen, Place
from shellwego.edge.ingress import Ingress, Status
from shellwego.edge.processes import Process
from shellwego.edge.routes import RoutesFile
from shellwego.edge.settings import EdgeSettings
from shellwego.ports.bus import Bus
from shellwego.ports.clock import Clock, Waiter
from shellwego.ports.uplink import EdgeUplink
from shellwego.wire import subjects

_SPARE_FILES = 1000
"""Descriptors beside the two of each connection: listeners, sockets of the runtime API, idle connections to servers."""

_log = structlog.get_logger(__name__)


def fitted(settings: EdgeSettings, file_limit: int) -> EdgeSettings:
    """Settings with no more connections than descriptors allow; HAProxy refuses to start with more."""
    if file_limit == resource.RLIM_INFINITY:
        return settings
    return replace(settings, max_connections=min(settings.max_connections, max((file_limit - _SPARE_FILES) // 2, 100)))


class Edge:
    """One edge. `open`, then `run` until cancelled, then `close`."""

    def __init__(
        self, uplink: EdgeUplink, bus: Bus, clock: Clock, settings: EdgeSettings, *, listen: Listen, place: Place
    ) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._settings = fitted(settings, hard)
        if self._settings != settings:
            _log.warning("edge.few_connections", connections=self._settings.max_connections, file_limit=hard)
        self._uplink = uplink
        self._bus = bus
        self._clock = clock
        self._haproxy = Haproxy(self._settings, listen, place)
        self._ingress = Ingress(self._settings, self._haproxy, RoutesFile(settings.state_dir), clock)
        self._waiter = Waiter(clock, self._status_changes)
        self._hinted = False
        self._due_at = float("-inf")
        self._reported: Status | None = None
        self._troubles = Troubles()
        self._id = ""

    @property
    def process(self) -> Process | None:
        """HAProxy's master."""
        return self._haproxy.process

    async def open(self) -> None:
        """Adopt the HAProxy that runs or start one, which serves the last routes from then on.

        Raises:
            HaproxyError: it is not installed or does not start.
            ShellWeGoError: from `listen`, where the port is taken.
        """
        await self._ingress.open()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with contextlib.aclosing(self._waiter), asyncio.TaskGroup() as group:
            group.create_task(self._ingress.run())
            group.create_task(self._listen_to_hints())
            group.create_task(self._talk())

    async def close(self, *, keep: bool) -> None:
        """Leave HAProxy running, or stop it gracefully."""
        if not keep:
            await self._haproxy.stop(self._settings.stop_grace_s)
        self._haproxy.release()

    async def _listen_to_hints(self) -> None:
        async with self._bus.subscribe(subjects.ROUTES) as hints:
            async for _ in hints:
                self._hinted = True
                self._waiter.ring()

    async def _status_changes(self) -> None:
        await self._ingress.changed.wait()

    async def _talk(self) -> None:
        while True:
            self._waiter.clear()
            self._ingress.changed.clear()
            try:
                await self._exchange()
            except ShellWeGoError as error:
                self._due_at = float("-inf")
                if isinstance(error, ForbiddenError):
                    self._id = ""
                if trouble := self._troubles.failed("uplink", error.message, self._clock.monotonic()):
                    said = {"reason": error.message, "code": error.code, "resolution": error.resolution}
                    _log.warning("edge.uplink_failed", **said, **trouble.fields)
            else:
                if trouble := self._troubles.passed("uplink", self._clock.monotonic()):
                    _log.info("edge.uplink_works_again", **trouble.fields)
            await self._waiter.wait(self._settings.poll_s)

    async def _exchange(self) -> None:
        """One round: what is new there, what is new here; all of it now and then, whatever is new."""
        due = not self._id or self._clock.monotonic() >= self._due_at
        self._due_at = self._clock.monotonic() + self._settings.poll_s if due else self._due_at
        if not self._id:
            self._id = await self._uplink.register_edge(self._settings.name)
        if due or self._hinted:
            self._hinted = False
            await self._fetch()
        status = self._ingress.status
        if status is not None and (due or status != self._reported):
            self._reported = None
            await self._uplink.report_edge(_report(self._id, status))
            self._reported = status

    async def _fetch(self) -> None:
        table = await self._uplink.routes(self._id, self._ingress.known_version)
        if table is not None:
            if table.version < self._ingress.known_version:
                _log.warning("edge.routes_went_back", version=table.version, before=self._ingress.known_version)
            self._ingress.take(table)


def _report(edge_id: str, status: Status) -> EdgeReport:
    return EdgeReport(edge_id=edge_id, applied_version=status.applied_version, open_sessions=status.open_sessions)
