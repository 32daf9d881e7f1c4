"""Brings the volumes of this host to what was ordered, before the VMs that need them: looks, lets `core.volume_convergence`
decide, carries the orders out. One order a volume at a time, each in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

import structlog

from shellwego.agent.backups import Backups
from shellwego.agent.leases import Leases
from shellwego.agent.replicas import Replicas
from shellwego.agent.waiting import cancel_all
from shellwego.core.assignments import Assignment, VolumeOrder, Workload
from shellwego.core.errors import NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.replica_convergence import NO_BASE
from shellwego.core.replicas import marked
from shellwego.core.sensitive import Sensitive
from shellwego.core.troubles import Troubles
from shellwego.core.vms import VmView
from shellwego.core.volume_convergence import (
    CloneVolume,
    CreateVolume,
    DeleteSnapshot,
    DeleteVolume,
    FillVolume,
    ResizeVolume,
    RestoreVolume,
    TakeSnapshot,
    UnlockVolume,
    VolumeAction,
    VolumeMemory,
    VolumeSight,
    converge_volumes,
    done,
    failed,
    obstacle,
)
from shellwego.core.volumes import ObservedVolume, VolumeView
from shellwego.ports.clock import Clock
from shellwego.ports.engine import VolumeEngine
from shellwego.ports.streams import StreamRequest

_log = structlog.get_logger(__name__)

Keys = Callable[[str], Awaitable[Sensitive]]
"""Gives the key of an encrypted volume of this node, by its id."""


class Volumes:
    """One host's volumes. `changed` is called when another look is worth while."""

    def __init__(
        self,
        engine: VolumeEngine | None,
        clock: Clock,
        changed: Callable[[], None],
        keys: Keys,
        *,
        backups: Backups,
        replicas: Replicas,
        leases: Leases,
    ) -> None:
        """`engine` None: this host keeps none. `backups` and `replicas` see at each look what there is."""
        self._leases = leases
        self._engine = engine
        self._keys = keys
        self._backups = backups
        self._replicas = replicas
        self._clock = clock
        self._changed = changed
        self._orders: Mapping[str, VolumeOrder] = {}
        self._views: Mapping[str, VolumeView] = {}
        self._memories: Mapping[str, VolumeMemory] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._marking: dict[str, asyncio.Task[None]] = {}
        """Markers that are being taken, by id."""
        self._troubles = Troubles()
        self.observed: Mapping[str, ObservedVolume] | None = None
        """By volume id, as of the last look; None before the first."""

    def assign(self, orders: tuple[VolumeOrder, ...]) -> bool:
        """Take new orders; False where they are those we had."""
        wanted = {order.volume_id: order for order in orders}
        known = self._orders == wanted
        self._orders = wanted
        self._memories = {id_: memory for id_, memory in self._memories.items() if id_ in wanted}
        return not known

    async def look(self) -> float | None:
        """Look once and act. Returns the monotonic time at which time alone changes something."""
        engine = self._engine
        if engine is None:
            return None
        self._views = {view.volume_id: view for view in await engine.volumes()}
        now = self._clock.monotonic()
        orders = self._orders.values()
        step = converge_volumes(
            orders, self._views.values(), self._memories, self._under_way.keys(), now, leased=self._leases.held.keys()
        )
        self.observed = step.observed
        for action in step.actions:
            self._order(engine, action)
        views = self._views.values()
        moments = (step.wake_at, self._backups.look(views), self._replicas.look(views))
        return min((moment for moment in moments if moment is not None), default=None)

    def obstacles(self, assignments: tuple[Assignment, ...], vms: tuple[VmView, ...]) -> dict[str, str]:
        """By instance: why none of its VMs can begin yet, as of the last look."""
        sight = VolumeSight(self._orders, self._views, self._memories)
        found = {
            item.instance_id: obstacle(item.instance_id, item.workload, sight, vms)
            for item in assignments
            if item.present and item.workload.mounts
        }
        return {instance_id: reason for instance_id, reason in found.items() if reason}

    def may_begin(self, workload: Workload) -> bool:
        """Whether a VM may have its volumes, as far as orders go that came since the last look."""
        orders = [self._orders.get(mount.volume_id) for mount in workload.mounts]
        return all(order is not None and order.present and not order.closed for order in orders)

    async def send(self, request: StreamRequest) -> AsyncGenerator[bytes]:
        """A snapshot of a volume of this host for another node, as `ports.engine.VolumeEngine.send_snapshot`; a marker is
        taken first where it is not there yet.

        Raises:
            NotFoundError: no such volume is here, or not the snapshot; `marker-not-found`, of the one from which what
                differs is asked for.
            UnavailableError: not now. `volume-open`: it is to be closed, and held by nobody, and is not.
        """
        engine, order, of = self._engine, self._orders.get(request.volume_id), marked(request.snapshot_id)
        if engine is None or order is None or not order.present:
            raise NotFoundError("volume-not-found", f"there is no volume {request.volume_id} on this node")
        if of is not None and of[0] not in order.replicas:
            raise UnavailableError("replica-unknown", "the volume's node was not told of this replica yet")
        view = {each.volume_id: each for each in await engine.volumes()}.get(request.volume_id)
        if view is None:
            raise NotFoundError("volume-not-found", f"there is no volume {request.volume_id} on this node")
        if request.quiet and (not self._orders[request.volume_id].closed or view.vm_id):
            raise UnavailableError("volume-open", "a VM of the volume's node has it, or may have it")
        there = {snapshot.snapshot_id for snapshot in view.snapshots}
        if request.base_id and request.base_id not in there:
            raise NotFoundError(NO_BASE, f"the volume's node has no snapshot {request.base_id} any more")
        if of is not None and request.snapshot_id not in there:
            await self._mark(engine, request)
        async with aclosing(engine.send_snapshot(request.snapshot_id, request.base_id)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _mark(self, engine: VolumeEngine, request: StreamRequest) -> None:
        """Take a marker, to its end also where its reader leaves: to copy a large volume takes longer than any reader waits,
        who comes back for it, and would find nothing each time."""
        name = request.snapshot_id
        if name not in self._marking:
            taking = self._taken(engine, request.volume_id, name)
            self._marking[name] = asyncio.create_task(taking, name=f"marker {name}")
            self._marking[name].add_done_callback(lambda _: self._marking.pop(name))
        await asyncio.shield(self._marking[name])

    async def _taken(self, engine: VolumeEngine, volume_id: str, snapshot_id: str) -> None:
        try:
            await engine.snapshot_volume(volume_id, snapshot_id, freeze=False)
        except ShellWeGoError as error:  # its reader may be gone
            if trouble := self._troubles.failed(f"marker {volume_id}", str(error), self._clock.monotonic()):
                _log.warning("agent.marker_failed", volume=volume_id, reason=str(error), **trouble.fields)
            raise

    async def close(self) -> None:
        """Let go of orders under way, and of markers."""
        await cancel_all([*self._under_way.values(), *self._marking.values()])

    def _order(self, engine: VolumeEngine, action: VolumeAction) -> None:
        name = f"{type(action).__name__} {action.volume_id}"
        task = asyncio.create_task(self._carry_out(engine, action), name=name)
        self._under_way[action.volume_id] = task
        task.add_done_callback(lambda _: self._ended(action.volume_id))

    def _ended(self, volume_id: str) -> None:
        del self._under_way[volume_id]
        self._changed()

    async def _carry_out(self, engine: VolumeEngine, action: VolumeAction) -> None:
        try:
            await self._do(engine, action)
        except ShellWeGoError as error:
            self._fail(action, error)
        except Exception as error:  # noqa: BLE001 - one order must not end the agent; it is told, and tried again
            self._fail(action, UnavailableError("volume-order-failed", f"the host failed: {error}"), trace=error)
        else:
            memory = self._memories.get(action.volume_id, VolumeMemory())
            self._memories = {**self._memories, action.volume_id: done(memory, action)}

    async def _do(self, engine: VolumeEngine, action: VolumeAction) -> None:
        match action:
            case CreateVolume():
                key = await self._keys(action.volume_id) if action.encrypted else None
                await engine.create_volume(action.volume_id, action.size_bytes, key)
            case FillVolume():
                key = await self._keys(action.volume_id) if action.encrypted else None
                await self._backups.fill(engine, action.volume_id, action.backup_id, key)
            case UnlockVolume():
                await engine.unlock_volume(action.volume_id, await self._keys(action.volume_id))
            case CloneVolume():
                await engine.clone_volume(action.snapshot_id, action.volume_id, action.size_bytes)
            case ResizeVolume():
                await engine.resize_volume(action.volume_id, action.size_bytes)
            case TakeSnapshot():
                await engine.snapshot_volume(action.volume_id, action.snapshot_id, freeze=action.freeze)
            case RestoreVolume():
                await engine.restore_volume(action.volume_id, action.snapshot_id)
            case DeleteSnapshot():
                await engine.delete_snapshot(action.snapshot_id)
            case DeleteVolume():
                await engine.delete_volume(action.volume_id)

    def _fail(self, action: VolumeAction, error: ShellWeGoError, trace: Exception | None = None) -> None:
        now, order = self._clock.monotonic(), type(action).__name__
        memory = self._memories.get(action.volume_id, VolumeMemory())
        self._memories = {**self._memories, action.volume_id: failed(memory, action, error, now)}
        if trouble := self._troubles.failed(f"{order} {action.volume_id}", str(error), now):
            said = {"order": order, "volume": action.volume_id, "reason": str(error), **trouble.fields}
            _log.warning("agent.volume_order_failed", exc_info=trace, **said)
