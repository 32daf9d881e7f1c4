"""Brings one HAProxy to the routes and keeps it there, whatever happens to either.

Theory. One task, one step at a time: make sure that a HAProxy lives, look at it when there is reason to, plan, carry out,
count sessions, and only then say what is applied. The version and the sessions are told together, from the same step, since
the control plane stops an instance on "applied, and nothing open".

What HAProxy holds is known from a look (`Worker.pool`) and kept up to date by what it confirmed since. Any doubt (a
complaint, a lost answer, a new process) throws the knowledge away and leads to a new look; so does the passing of time,
which also finds what others planted.

Without a route table (first start, nothing on disk) a running HAProxy is left as it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from shellwego.core.errors import ShellWeGoError
from shellwego.core.routing import RouteTable
from shellwego.core.troubles import Troubles
from shellwego.edge import config
from shellwego.edge.haproxy import Haproxy, HaproxyError
from shellwego.edge.pool import (
    Claims,
    DeleteServer,
    Plan,
    Pool,
    Progress,
    Wanted,
    apply,
    claim,
    confirmed,
    draining,
    grown,
    instance_of,
    occupied,
    plan,
)
from shellwego.edge.routes import LastRoutes, RoutesFile
from shellwego.edge.runtime import Processes, RuntimeApiError
from shellwego.edge.settings import EdgeSettings
from shellwego.edge.targets import Targets, read_table, want
from shellwego.ports.clock import Clock

RETRY_S = 1.0
RELOAD_RETRY_S = 30.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """What was brought about, as one fact."""

    applied_version: int
    open_sessions: Mapping[str, int] = field(default_factory=dict)
    """Instance that left the routes → its sessions, over all workers."""
    draining: bool = False


class Ingress:
    """One HAProxy and its routes."""

    def __init__(self, settings: EdgeSettings, haproxy: Haproxy, file: RoutesFile, clock: Clock) -> None:
        self._settings = settings
        self._haproxy = haproxy
        self._clock = clock
        self._file = file
        self._targets = Targets()
        self._held: dict[str, int] = {}
        self._saved: LastRoutes | None = None
        self._present: Pool | None = None
        self._looked_at = 0.0
        self._silent_since: float | None = None
        """Of a HAProxy that is alive: since when no step had all of its answers."""
        self._reload_after = 0.0
        self._outdated = False
        """HAProxy runs with a configuration that another version of this code, or other settings, wrote."""
        self._old: tuple[int, ...] = ()
        self._retired: set[int] = set()
        self._wake = asyncio.Event()
        self._troubles = Troubles()
        self.status: Status | None = None
        self.changed = asyncio.Event()
        """Set whenever `status` says something new."""

    @property
    def known_version(self) -> int:
        """Of the table that is applied, or about to be; -1 for none."""
        return self._targets.version

    def take(self, table: RouteTable) -> None:
        """Serve this table from the next step on."""
        targets = read_table(table)
        for reason in targets.refused:
            _log.error("edge.route_refused", reason=reason, version=table.version)
        self._targets = targets
        self._wake.set()

    async def open(self) -> None:
        """Adopt the HAProxy that runs, or start one from the last routes.

        Raises:
            HaproxyError: it does not start.
            ShellWeGoError: the port is taken.
        """
        self._saved = await self._file.load()
        if self._saved is not None:
            self.take(self._saved.table)
        if await self._haproxy.adopt():
            await self._trust()
        else:
            await self._start()

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            try:
                await self._step()
                pause = self._pause()
                self._silent_since = None
                self._passed("step")
            except Exception as error:  # noqa: BLE001 - whatever it is, HAProxy serves on, and is looked at anew
                if trouble := self._troubles.failed("step", str(error), self._clock.monotonic()):
                    trace = None if isinstance(error, ShellWeGoError) else error
                    _log.warning("edge.step_failed", reason=str(error), exc_info=trace, **trouble.fields)
                self._present = None
                await self._end_if_dumb(error)
                pause = RETRY_S
            await self._rest(pause)

    async def _step(self) -> None:
        self._wake.clear()
        if not self._haproxy.alive:
            await self._start()
        targets = self._targets
        present = self._present
        if present is None or self._clock.monotonic() >= self._looked_at + self._settings.observe_s:
            present = await self._look()
        if targets.table is not None:
            await self._bring(present, targets, targets.table)

    def _pause(self) -> float:
        busy = self.status is not None and self.status.draining
        return self._settings.drain_poll_s if busy or self._old or self._present is None else self._settings.observe_s

    async def _rest(self, seconds: float) -> None:
        """Until there is something new, HAProxy has ended, or the time is over."""
        watched = [self._haproxy.wait_ended()] if self._haproxy.alive else []
        await first(self._wake.wait(), self._clock.sleep(seconds), *watched)

    async def _start(self) -> None:
        """A HAProxy that serves the present routes from its first request on."""
        missing = len(self._targets.apps) - self._settings.pool_size
        size = grown(self._settings.pool_size, max(missing, 0), self._settings.pool_limit)
        claims = claim(self._targets.apps, {}, frozenset(), size)
        await self._haproxy.start(config.files(self._settings, size, want(self._targets, claims.backends)))
        self._held = dict(claims.backends)
        self._present, self._old, self._retired = None, (), set()
        self._outdated = False
        self._silent_since = None

    async def _trust(self) -> None:
        """After adoption: keep the claims on record that HAProxy bears out."""
        worker = self._haproxy.worker
        self._outdated = await worker.config_version() != config.version(self._settings)
        if self._saved is not None:
            backends = self._saved.backends
            self._held = confirmed(backends, await worker.pool(), want(self._targets, backends))

    async def _look(self) -> Pool:
        """See what HAProxy holds."""
        processes = await self._retire_old()
        if await self._haproxy.worker.pid() != processes.worker:
            raise RuntimeApiError("the admin socket belongs to another worker than the current one")
        self._present = await self._haproxy.worker.pool()
        self._looked_at = self._clock.monotonic()
        return self._present

    async def _retire_old(self) -> Processes:
        """No worker of before a reload may decide by its old routes."""
        processes = await self._haproxy.master.processes()
        for pid in processes.old:
            if pid not in self._retired:
                await self._haproxy.master.retire(pid)
                self._retired.add(pid)
        self._old = processes.old
        self._retired &= set(processes.old)
        return processes

    async def _bring(self, present: Pool, targets: Targets, table: RouteTable) -> None:
        """Bring HAProxy to the routes; then say so, with the sessions that are still open elsewhere."""
        claims = claim(targets.apps, self._held, occupied(present), present.size)
        if claims.waiting or self._outdated:
            claims = await self._reload(present, targets, claims)
            present = self._present or present
        self._held = dict(claims.backends)
        wanted = want(targets, self._held)
        if not await self._execute(present, plan(present, wanted)):
            self._present = None
            return
        await self._save(table)
        await self._count(present, wanted)
        await self._tell(present, targets, wanted)

    async def _reload(self, present: Pool, targets: Targets, claims: Claims) -> Claims:
        """A worker with a larger pool, or with a newer configuration. Where it does not come up, what fits is served."""
        now = self._clock.monotonic()
        size = grown(present.size, len(claims.waiting), self._settings.pool_limit)
        if now < self._reload_after or (size == present.size and not self._outdated):
            return claims
        self._reload_after = now + RELOAD_RETRY_S
        larger = claim(targets.apps, self._held, occupied(present), size)
        try:
            await self._haproxy.reload(config.files(self._settings, size, want(targets, larger.backends)))
        except HaproxyError as error:
            _log.error("edge.reload_failed", reason=error.message, waiting=len(claims.waiting))
            return claims
        _log.info("edge.reloaded", pool_size=size, before=present.size)
        self._outdated = False
        self._reload_after = 0.0
        await self._look()
        return larger

    async def _execute(self, present: Pool, todo: Plan) -> bool:
        """Carry out a plan, leaving out what depends on a failed step. False where HAProxy complained of any."""
        progress = Progress()
        complained = False
        for phase in todo.phases:
            possible = progress.possible(phase)
            complaints = await self._haproxy.worker.execute(possible)
            for operation, complaint in zip(possible, complaints, strict=True):
                if not complaint:
                    apply(present, operation)
                elif not isinstance(operation, DeleteServer):  # it waits for idle connections, and is tried again
                    self._complained(str(operation), complaint[:200])
                    progress.fail(operation)
                    complained = True
        return not complained

    def _complained(self, operation: str, complaint: str) -> None:
        if trouble := self._troubles.failed(operation, complaint, self._clock.monotonic()):
            _log.warning("edge.operation_failed", operation=operation, complaint=complaint, **trouble.fields)

    async def _save(self, table: RouteTable) -> None:
        """Keep what is applied for a start without the control plane."""
        last = LastRoutes(table=table, backends=dict(self._held))
        if last == self._saved:
            return
        try:
            await self._file.save(last)
        except OSError as error:
            if trouble := self._troubles.failed("save", str(error), self._clock.monotonic()):
                _log.error("edge.routes_not_saved", reason=str(error), **trouble.fields)
            return
        self._saved = last
        self._passed("save")

    def _passed(self, what: str) -> None:
        if trouble := self._troubles.passed(what, self._clock.monotonic()):
            _log.info("edge.works_again", what=what, **trouble.fields)

    async def _count(self, present: Pool, wanted: Wanted) -> None:
        """Look at the connections of what is draining; a server is cleared only on a count that is younger."""
        leaving = draining(present, wanted)
        used = await self._haproxy.worker.connections({backend for backend, _ in leaving}) if leaving else {}
        for key in leaving:
            present.servers[key] = replace(present.servers[key], connections=used.get(key, 0))
        if self._old:
            await self._retire_old()

    async def _tell(self, present: Pool, targets: Targets, wanted: Wanted) -> None:
        sessions: Counter[str] = Counter()
        leaving = draining(present, wanted)
        for key in leaving:
            sessions[instance_of(key[1])] += present.servers[key].connections
        for pid in self._old:
            for (_, server), used in (await self._haproxy.master.connections(pid)).items():
                sessions[instance_of(server)] += used
        open_sessions = {
            instance: count for instance, count in sessions.items() if count and instance not in targets.instances
        }
        status = Status(targets.version, open_sessions, draining=bool(leaving or self._old))
        if status != self.status:
            self.status = status
            self.changed.set()

    async def _end_if_dumb(self, error: Exception) -> None:
        """End a HAProxy that was asked again and again, and did not answer. The time begins with the first question that it
        left open. How long a step takes, or how long ago one had anything to tell, says nothing of it: the edge may have no
        routes, or may have stood still; nor does whatever else fails here."""
        if not isinstance(error, RuntimeApiError):
            self._silent_since = None
            return
        now = self._clock.monotonic()
        self._silent_since = now if self._silent_since is None else self._silent_since
        if self._haproxy.alive and now > self._silent_since + self._settings.unresponsive_s:
            _log.error("edge.haproxy_unresponsive")
            await self._haproxy.kill()


async def first(*waits: Awaitable[object]) -> None:
    """Return as soon as one of these does; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
