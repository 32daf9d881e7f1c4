"""Keeps the copies of other nodes' volumes that this host was told to keep: looks, lets `core.replica_convergence` decide,
carries the orders out. One order a copy at a time, each in a task of its own, a few at once of each
kind of load: an app that is stopped for a move's last round does not wait for hours until the copies of others are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace

import structlog

from shellwego.agent.waiting import cancel_all
from shellwego.core.errors import ConflictError, ShellWeGoError, UnavailableError
from shellwego.core.replica_convergence import (
    Discard,
    Load,
    Receive,
    ReplicaAction,
    ReplicaMemory,
    converge_replicas,
    done,
    failed,
    load_of,
)
from shellwego.core.replicas import ObservedReplica, ReplicaOrder
from shellwego.core.troubles import Troubles
from shellwego.core.volume_convergence import DeleteSnapshot
from shellwego.core.volumes import VolumeView
from shellwego.ports.clock import Clock
from shellwego.ports.engine import VolumeEngine

AT_ONCE: Mapping[Load, int] = {Load.COPY: 2, Load.DIFFERENCE: 4, Load.REMOVAL: 4}
"""Of each kind of load. What comes, all together, is less than `drivers.uplink.downloads` lets come at once."""
_STEPS = 50
"""In which progress is told."""

_log = structlog.get_logger(__name__)

FetchReplica = Callable[[str, str, str], AsyncGenerator[bytes]]
"""Gives a snapshot for a replica, as what differs from another (empty: whole); see `ports.uplink.Replicas`."""


class Replicas:
    """One host's copies. `changed` is called when another look is worth while; without `fetch` none can be brought up."""

    def __init__(
        self,
        engine: VolumeEngine | None,
        clock: Clock,
        changed: Callable[[], None],
        fetch: FetchReplica | None,
    ) -> None:
        """`engine` None: this host keeps no volumes."""
        self._engine = engine
        self._clock = clock
        self._changed = changed
        self._fetch = fetch
        self._orders: Mapping[str, ReplicaOrder] = {}
        self._memories: Mapping[str, ReplicaMemory] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._rooms = {load: asyncio.Semaphore(most) for load, most in AT_ONCE.items()}
        self._troubles = Troubles()
        self.observed: Mapping[str, ObservedReplica] = {}
        """By replica id, as of the last look."""

    def assign(self, orders: Iterable[ReplicaOrder]) -> bool:
        """Take new orders; False where they are those we had. What is not to be kept any more is fetched no further."""
        wanted = {order.replica_id: order for order in orders}
        known = self._orders == wanted
        self._orders = wanted
        self._memories = {id_: memory for id_, memory in self._memories.items() if id_ in wanted}
        for id_, task in self._under_way.items():
            if id_ not in wanted or not wanted[id_].present:
                task.cancel()
        return not known

    def look(self, views: Iterable[VolumeView]) -> float | None:
        """Begin what is due. Returns the monotonic time at which time alone changes something."""
        engine = self._engine
        if engine is None:
            return None
        now = self._clock.monotonic()
        step = converge_replicas(self._orders.values(), views, self._memories, self._under_way.keys(), now)
        self.observed = step.observed
        for order, action in step.actions:
            self._order(engine, order, action)
        return step.wake_at

    async def close(self) -> None:
        """Let go of orders under way."""
        await cancel_all(list(self._under_way.values()))

    def _order(self, engine: VolumeEngine, order: ReplicaOrder, action: ReplicaAction) -> None:
        name = f"{type(action).__name__} {order.replica_id}"
        task = asyncio.create_task(self._carry_out(engine, order, action), name=name)
        self._under_way[order.replica_id] = task
        task.add_done_callback(lambda _: self._ended(order.replica_id))

    def _ended(self, replica_id: str) -> None:
        del self._under_way[replica_id]
        self._changed()

    async def _carry_out(self, engine: VolumeEngine, order: ReplicaOrder, action: ReplicaAction) -> None:
        try:
            async with self._rooms[load_of(action)]:
                digest = await self._do(engine, order, action)
        except ShellWeGoError as error:
            self._fail(order, action, error)
        except Exception as error:  # noqa: BLE001 - one order must not end the agent; it is told, and tried again
            self._fail(
                order, action, UnavailableError("replica-order-failed", f"the host failed: {error}"), trace=error
            )
        else:
            self._remember(order, lambda memory: done(memory, order, action, digest))

    async def _do(self, engine: VolumeEngine, order: ReplicaOrder, action: ReplicaAction) -> str:
        match action:
            case Receive():
                return await self._receive(engine, order, action)
            case DeleteSnapshot():
                await engine.delete_snapshot(action.snapshot_id)
            case Discard():
                await engine.delete_volume(action.volume_id, with_snapshots=True)
        return ""

    async def _receive(self, engine: VolumeEngine, order: ReplicaOrder, action: Receive) -> str:
        if self._fetch is None:
            raise ConflictError("cannot-fetch", "this node has no way to the volumes of other nodes")
        fetched = self._fetch(action.replica_id, action.snapshot_id, action.since)
        async with aclosing(fetched), aclosing(self._counted(order, fetched)) as stream:
            return await engine.receive_snapshot(action.volume_id, action.snapshot_id, stream, action.since)

    async def _counted(self, order: ReplicaOrder, stream: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """The stream, told as it comes, in steps."""
        step, received = max(order.size_bytes // _STEPS, 1), 0
        self._remember(order, lambda memory: replace(memory, bytes=0))
        async for chunk in stream:
            before, received = received, received + len(chunk)
            if before // step < received // step:
                self._count(order, received)
            yield chunk
        self._count(order, received)

    def _count(self, order: ReplicaOrder, received: int) -> None:
        self._remember(order, lambda memory: replace(memory, bytes=received))
        self._changed()

    def _remember(self, order: ReplicaOrder, change: Callable[[ReplicaMemory], ReplicaMemory]) -> None:
        """What is not ordered any more is not remembered either."""
        id_ = order.replica_id
        if id_ in self._orders:
            self._memories = {**self._memories, id_: change(self._memories.get(id_, ReplicaMemory()))}

    def _fail(
        self, order: ReplicaOrder, action: ReplicaAction, error: ShellWeGoError, trace: Exception | None = None
    ) -> None:
        now, what = self._clock.monotonic(), type(action).__name__
        self._remember(order, lambda memory: failed(memory, action, error, now))
        if trouble := self._troubles.failed(f"{what} {order.replica_id}", str(error), now):
            said = {"order": what, "replica": order.replica_id, "volume": order.volume_id, "reason": str(error)}
            _log.warning("agent.replica_order_failed", exc_info=trace, **said, **trouble.fields)
