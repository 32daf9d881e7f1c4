"""Brings the host to what was assigned: looks, lets `core.convergence` decide, carries the orders out.

Each order runs in a task of its own, so that one VM whose deletion hangs holds up no other; while one is under way for a VM,
no second is given. What an order came to is seen at a later look, except a refusal to run, which leaves no VM to see and is
remembered as an attempt that ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

import structlog

from shellwego.agent.backups import Backups
from shellwego.agent.checks import Checker, checks_of
from shellwego.agent.leases import Leases
from shellwego.agent.probes import Target
from shellwego.agent.replicas import Replicas
from shellwego.agent.secrets import SecretKeeper
from shellwego.agent.tails import Tails
from shellwego.agent.volumes import Volumes
from shellwego.agent.waiting import cancel_all
from shellwego.core.assignments import Assignment, VolumeOrder
from shellwego.core.attempts import End, Memory, delayed, hindered, refused, unfetched
from shellwego.core.backups import BackupOrder
from shellwego.core.convergence import (
    Action,
    DeleteVm,
    FetchVm,
    RestrictVm,
    ResumeVm,
    RunVm,
    ScreenVm,
    StopVm,
    SuspendVm,
    converge,
)
from shellwego.core.errors import ConflictError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.instances import SUSPEND_FAILED, Observed
from shellwego.core.replicas import ReplicaOrder
from shellwego.core.troubles import Troubles
from shellwego.core.vms import VmPhase, VmView
from shellwego.ports.clock import Clock
from shellwego.ports.engine import Engine, FencingEngine, VmOrder, VolumeEngine

_CHECKED = (VmPhase.RUNNING, VmPhase.SUSPENDING)
"""One that falls asleep keeps its checks' word, in case that it does not."""
_NOT_YET = frozenset({"backend-probing", "volume-fenced", "volume-held"})
"""Codes by which the engine says that a VM cannot begin now, for no reason of its own."""
_MEMORY_LOST = frozenset({"snapshot-damaged", "snapshot-foreign", "snapshot-missing", "snapshot-version"})
"""Codes by which the engine says that a VM's memory cannot be had any more."""

_log = structlog.get_logger(__name__)


FetchMemory = Callable[[str], AsyncGenerator[bytes]]
"""Gives the memory that an instance is to go on with; see `ports.uplink.Memories`."""


class Reconciler:
    """One host's instances. `changed` is called when another look is worth while; without `fetch` no memory comes here."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        checker: Checker,
        secrets: SecretKeeper,
        changed: Callable[[], None],
        *,
        backups: Backups,
        replicas: Replicas,
        fetch: FetchMemory | None = None,
    ) -> None:
        self._fetch_memory = fetch
        self._engine = engine
        self._clock = clock
        self._checker = checker
        self._secrets = secrets
        self._tails = Tails(engine, clock)
        self._changed = changed
        keeps = engine if isinstance(engine, VolumeEngine) else None
        self.leases = Leases(engine if isinstance(engine, FencingEngine) else None, clock)
        self.volumes = Volumes(
            keeps, clock, changed, secrets.volume_key, backups=backups, replicas=replicas, leases=self.leases
        )
        self.backups = backups
        self.replicas = replicas
        self._assignments: tuple[Assignment, ...] | None = None
        self._memories: Mapping[str, Memory] = {}
        self._orders: dict[str, asyncio.Task[None]] = {}
        self._troubles = Troubles()
        self._views: tuple[VmView, ...] = ()
        self._looked = asyncio.Event()
        self.observed: Mapping[str, Observed] | None = None
        """By instance id, as of the last look, those left out of which nothing can be told yet; None before the first."""

    def assign(
        self,
        assignments: tuple[Assignment, ...],
        volumes: tuple[VolumeOrder, ...] = (),
        backups: tuple[BackupOrder, ...] = (),
        replicas: tuple[ReplicaOrder, ...] = (),
    ) -> bool:
        """Take new orders; False where they are those we had."""
        news = [self.volumes.assign(volumes), self.backups.assign(backups), self.replicas.assign(replicas)]
        known = not any(news) and self._assignments == assignments
        self._assignments = assignments
        self._secrets.keep_only({item.instance_id for item in assignments if item.present})
        return not known

    async def look(self) -> float | None:
        """Look once and act. Returns the monotonic time at which time alone changes something.

        Before the first assignments nothing is done: an unknown VM may be one that should be kept.
        """
        if self._assignments is None:
            return None
        views = await self._engine.observe()
        self._check(self._assignments, views)
        unsettled = self._checker.unsettled()
        health = await self._tails.joined(self._checker.health)
        wake_volumes = await self.volumes.look()
        assignments = self._assignments
        obstacles = self.volumes.obstacles(assignments, views)
        now, lapses = self._clock.monotonic(), self.leases.lapses(assignments)
        step = converge(assignments, views, self._memories, health, now, obstacles=obstacles, lapses=lapses)
        self._memories = step.memories
        self._take(views, {id_: seen for id_, seen in step.observed.items() if id_ not in unsettled})
        for action in step.actions:
            self._order(action)
        return min((moment for moment in (step.wake_at, wake_volumes) if moment is not None), default=None)

    def vm_of(self, instance_id: str) -> VmView | None:
        """The newest attempt of an instance, as of the last look."""
        own = [view for view in self._views if view.instance_id == instance_id]
        return max(own, key=lambda view: view.attempt, default=None)

    def apps(self) -> dict[str, str]:
        """The ids of those of the VMs here, by VM, as of the last look."""
        return {view.vm_id: view.identity for view in self._views if view.identity}

    async def successor(self, vm: VmView) -> VmView | None:
        """Wait for the next attempt of the same instance; None where none will come."""
        while (newest := self.vm_of(vm.instance_id)) is None or newest.attempt <= vm.attempt:
            if not self._goes_on(vm.instance_id):
                return None
            await self._looked.wait()
        return newest

    async def close(self) -> None:
        """Let go of orders under way; no VM is stopped."""
        await cancel_all(list(self._orders.values()))
        await self.backups.close()
        await self.replicas.close()
        await self.volumes.close()

    def _goes_on(self, instance_id: str) -> bool:
        present = any(item.instance_id == instance_id and item.present for item in self._assignments or ())
        return present and self._memories.get(instance_id, Memory()).outcome is None

    def _check(self, assignments: tuple[Assignment, ...], views: tuple[VmView, ...]) -> None:
        workloads = {item.instance_id: item.workload for item in assignments if item.present}
        running = {
            view.vm_id: (
                Target(vm_id=view.vm_id, instance_id=view.instance_id, address=view.address),
                checks_of(workloads[view.instance_id]),
            )
            for view in views
            if view.phase in _CHECKED and view.instance_id in workloads
        }
        self._checker.sync(running, adopted=self.observed is None)

    def _take(self, views: tuple[VmView, ...], observed: Mapping[str, Observed]) -> None:
        self._views = views
        self.observed = observed
        self._looked.set()
        self._looked = asyncio.Event()

    def _order(self, action: Action) -> None:
        if action.vm_id not in self._orders:
            task = asyncio.create_task(self._carry_out(action), name=f"{type(action).__name__} {action.vm_id}")
            self._orders[action.vm_id] = task
            task.add_done_callback(lambda _: self._orders.pop(action.vm_id, None))

    async def _hold(self, action: RestrictVm | ScreenVm) -> None:
        match action:
            case RestrictVm():
                await self._engine.restrict(action.vm_id, action.egress)
            case ScreenVm():
                await self._engine.screen(action.vm_id, action.identity, action.ingress)

    async def _carry_out(self, action: Action) -> None:
        try:
            match action:
                case RunVm():
                    await self._run(action)
                case FetchVm():
                    await self._fetch(action)
                case StopVm():
                    await self._engine.stop(action.vm_id, action.grace_s)
                case DeleteVm():
                    await self._engine.delete(action.vm_id)
                case RestrictVm() | ScreenVm():
                    await self._hold(action)
                case SuspendVm() | ResumeVm():
                    await self._sleep_or_wake(action)
        except NotFoundError:
            self._changed()  # it is gone, as was wanted
        except Exception as error:  # noqa: BLE001 - one order must not end the agent; the next look gives it again
            order = type(action).__name__
            if trouble := self._troubles.failed(f"{order} {action.vm_id}", str(error), self._clock.monotonic()):
                trace = None if isinstance(error, ShellWeGoError) else error
                said = {"order": order, "vm": action.vm_id, "reason": str(error), **trouble.fields}
                _log.warning("agent.order_failed", exc_info=trace, **said)

    async def _run(self, order: RunVm) -> None:
        try:
            await self._begin(order)
        except ShellWeGoError as error:
            end = End(reason=error.message, reason_code=error.code, permanent=not error.temporary)
            memory = self._memories.get(order.instance_id, Memory())
            now = self._clock.monotonic()
            self._memories = {
                **self._memories,
                order.instance_id: refused(memory, order.attempt, order.workload, end, now),
            }
            self._changed()

    async def _begin(self, order: RunVm) -> None:
        try:
            secrets = await self._secrets.values(order)
        except UnavailableError as error:
            self._delay(order, error)
            return
        if not self.volumes.may_begin(order.workload):
            self._delay(order, UnavailableError("volume-closed", "a volume that it mounts is not to be had any more"))
            return
        try:
            await self._engine.run(replace(_vm_order(order), secrets=secrets))
        except ShellWeGoError as error:
            if error.code not in _NOT_YET:
                raise
            self._delay(order, error)

    async def _fetch(self, order: FetchVm) -> None:
        """Its secrets are in its memory. A failure leaves no VM to see, and is remembered."""
        try:
            if self._fetch_memory is None:
                raise ConflictError("cannot-fetch", "this node has no way to the memory of VMs on other nodes")
            async with aclosing(self._fetch_memory(order.instance_id)) as stream:
                await self._engine.import_memory(_vm_order(order), stream)
        except ShellWeGoError as error:
            _log.warning("agent.memory_not_fetched", vm=order.vm_id, reason=str(error))
            end = End(reason=error.message, reason_code=error.code)
            memory = self._memories.get(order.instance_id, Memory())
            memory = unfetched(memory, end, self._clock.monotonic(), temporary=error.temporary)
            self._memories = {**self._memories, order.instance_id: memory}
            self._changed()

    def _delay(self, order: RunVm, error: ShellWeGoError) -> None:
        """The VM begins when what it needs can be had; that it cannot is none of its own failures."""
        end = End(reason=error.message, reason_code=error.code)
        memory = self._memories.get(order.instance_id, Memory())
        self._memories = {**self._memories, order.instance_id: delayed(memory, end, self._clock.monotonic())}
        self._changed()

    async def _sleep_or_wake(self, order: SuspendVm | ResumeVm) -> None:
        """A failure is remembered, since the VM shows none: it is what it was."""
        suspending = isinstance(order, SuspendVm)
        try:
            move = self._engine.suspend if suspending else self._engine.resume
            await move(order.vm_id)
        except NotFoundError:
            raise
        except ShellWeGoError as error:
            _log.warning("agent.sleep_or_wake_failed", vm=order.vm_id, order=type(order).__name__, reason=str(error))
            code = SUSPEND_FAILED if suspending else "resume-failed"
            lost = not suspending and error.code in _MEMORY_LOST
            end = End(reason=error.message, reason_code=code, permanent=lost)
            memory = self._memories.get(order.instance_id, Memory())
            memory = hindered(memory, end, self._clock.monotonic())
            self._memories = {**self._memories, order.instance_id: memory}
            self._changed()


def _vm_order(order: RunVm | FetchVm) -> VmOrder:
    return VmOrder(vm_id=order.vm_id, instance_id=order.instance_id, attempt=order.attempt, workload=order.workload)
