"""Brings the volumes of this host to what was ordered, before the VMs that need them: looks, lets `core.volume_convergence`
decide, carries the orders out. One order a volume at a time, each in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from shellwego.agent.waiting import cancel_all
from shellwego.core.assignments import Assignment, VolumeOrder
from shellwego.core.errors import ShellWeGoError, UnavailableError
from shellwego.core.troubles import Troubles
from shellwego.core.vms import VmView
from shellwego.core.volume_convergence import (
    CloneVolume,
    CreateVolume,
    DeleteSnapshot,
    DeleteVolume,
    ResizeVolume,
    RestoreVolume,
    TakeSnapshot,
    VolumeAction,
    VolumeMemory,
    converge_volumes,
    done,
    failed,
    obstacle,
)
from shellwego.core.volumes import ObservedVolume, VolumeView
from shellwego.ports.clock import Clock
from shellwego.ports.engine import VolumeEngine

_log = structlog.get_logger(__name__)


class Volumes:
    """One host's volumes. `changed` is called when another look is worth while."""

    def __init__(self, engine: VolumeEngine | None, clock: Clock, changed: Callable[[], None]) -> None:
        """`engine` None: this host keeps none."""
        self._engine = engine
        self._clock = clock
        self._changed = changed
        self._orders: Mapping[str, VolumeOrder] = {}
        self._views: Mapping[str, VolumeView] = {}
        self._memories: Mapping[str, VolumeMemory] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
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
        step = converge_volumes(orders, self._views.values(), self._memories, self._under_way.keys(), now)
        self.observed = step.observed
        for action in step.actions:
            self._order(engine, action)
        return step.wake_at

    def obstacles(self, assignments: tuple[Assignment, ...], vms: tuple[VmView, ...]) -> dict[str, str]:
        """By instance: why none of its VMs can begin yet, as of the last look."""
        found = {
            item.instance_id: obstacle(item.instance_id, item.workload, self._orders, self._views, vms)
            for item in assignments
            if item.present and item.workload.mounts
        }
        return {instance_id: reason for instance_id, reason in found.items() if reason}

    async def close(self) -> None:
        """Let go of orders under way."""
        await cancel_all(list(self._under_way.values()))

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
            await _do(engine, action)
        except ShellWeGoError as error:
            self._fail(action, error)
        except Exception as error:  # noqa: BLE001 - one order must not end the agent; it is told, and tried again
            self._fail(action, UnavailableError("volume-order-failed", f"the host failed: {error}"), trace=error)
        else:
            memory = self._memories.get(action.volume_id, VolumeMemory())
            self._memories = {**self._memories, action.volume_id: done(memory, action)}

    def _fail(self, action: VolumeAction, error: ShellWeGoError, trace: Exception | None = None) -> None:
        now, order = self._clock.monotonic(), type(action).__name__
        memory = self._memories.get(action.volume_id, VolumeMemory())
        self._memories = {**self._memories, action.volume_id: failed(memory, action, error, now)}
        if trouble := self._troubles.failed(f"{order} {action.volume_id}", str(error), now):
            said = {"order": order, "volume": action.volume_id, "reason": str(error), **trouble.fields}
            _log.warning("agent.volume_order_failed", exc_info=trace, **said)


async def _do(engine: VolumeEngine, action: VolumeAction) -> None:
    match action:
        case CreateVolume():
            await engine.create_volume(action.volume_id, action.size_bytes)
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
