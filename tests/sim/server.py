"""One server: the real use cases and all loops, which can be killed, paused, and cut off from the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from shellwego.control.edges import Edges
from shellwego.control.imagework import ImageWork
from shellwego.control.loops import drains as drains_loop
from shellwego.control.loops import images as images_loop
from shellwego.control.loops import moves as moves_loop
from shellwego.control.loops import names as names_loop
from shellwego.control.loops import nodes as nodes_loop
from shellwego.control.loops import outbox as outbox_loop
from shellwego.control.loops import retention as retention_loop
from shellwego.control.loops import rewrap as rewrap_loop
from shellwego.control.loops import rollout as rollout_loop
from shellwego.control.loops import routes as routes_loop
from shellwego.control.loops import standbys as standbys_loop
from shellwego.control.loops.lease import Leases
from shellwego.control.memories import NodeMemories
from shellwego.control.nodes import Nodes
from shellwego.control.replicastreams import NodeReplicas
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control
from shellwego.core.assignments import NodeReport
from shellwego.core.errors import ShellWeGoError, UnavailableError
from tests.sim.timeline import Gate, HostClock
from tests.sim.ways import BusWay, StoreWay, cancelled

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")

PATIENCE_S = 3.0
"""So long a caller waits for a server that stands still."""

reporting: ContextVar[NodeReport | None] = ContextVar("reporting", default=None)
"""The report that is being taken in by this task."""


class Server:
    """`alive` from `start` to `kill`; what it was doing when it is killed is left half done."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.name = f"server-{number}"
        dice = world.dice(self.name)
        self.gate = Gate()
        self.clock = HostClock(world.clock, self.gate, world.dice(f"ids of {self.name}"))
        self.store = StoreWay(world, self, self.gate, self.clock, dice)
        self.bus = BusWay(world, self, self.gate, dice)
        self.alive = False
        self._loops: list[asyncio.Task[None]] = []
        self._streams: set[asyncio.Task[None]] = set()
        self._calls: dict[asyncio.Task[object], asyncio.Future[None]] = {}

    def start(self) -> None:
        self.gate.open()
        control = self.control = Control(self.store, self.bus, self.clock)
        sealer = Sealer(control, self._world.kms)
        self.work = ImageWork(self._world.images, self._world.store_clock)
        self.nodes, self.edges = Nodes(control, sealer), Edges(control)
        self.memories = NodeMemories(control, self._world.streams)
        self.replicas = NodeReplicas(control, self._world.streams)
        leases = Leases(control, self.name)
        parts = {
            "leases": leases.run(),
            "outbox": outbox_loop.run(control, holder=leases),
            "images": images_loop.run(control, self.work, holder=leases),
            "rollout": rollout_loop.run(control, holder=leases),
            "nodes": nodes_loop.run(control, holder=leases),
            "drains": drains_loop.run(control, holder=leases),
            "moves": moves_loop.run(control, holder=leases),
            "standbys": standbys_loop.run(control, holder=leases),
            "routes": routes_loop.run(control, holder=leases),
            "names": names_loop.run(control, holder=leases),
            "rewrap": rewrap_loop.run(control, sealer, holder=leases),
            "retention": retention_loop.run(control, holder=leases),
        }
        self._loops = [asyncio.ensure_future(part) for part in parts.values()]
        for name, task in zip(parts, self._loops, strict=True):
            task.add_done_callback(lambda ended, name=name: self._ended(name, ended))
        self.alive = True

    async def kill(self) -> None:
        """As by SIGKILL: callers get no answer."""
        self.alive = False
        loops, self._loops = self._loops, []
        await cancelled([*loops, *self._calls, *self._streams])  # type: ignore[list-item]

    async def stop(self) -> None:
        """As by SIGTERM: its loops end as they would, and give back what they hold."""
        loops = list(self._loops)
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        if self._loops == loops:  # nobody killed it meanwhile
            await self.kill()

    def pause(self) -> None:
        """As by SIGSTOP: whoever waits for it gives up after a while."""
        self.gate.close()
        self._world.later(PATIENCE_S, self._give_up)

    async def _give_up(self) -> None:
        if self.gate.closed:
            for waiting in list(self._calls.values()):
                if not waiting.done():
                    waiting.set_result(None)

    async def serve(self, invoke: Callable[[Server], Awaitable[T]]) -> T:
        """Do one call, in a task of the server's own.

        Raises:
            UnavailableError: it is gone, or was killed meanwhile, or stands still.
        """
        if not self.alive:
            raise UnavailableError("uplink-unavailable", "connection refused")
        task = asyncio.ensure_future(self._do(invoke))
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls[task] = answered
        task.add_done_callback(lambda _: self._done(task))
        if self.gate.closed:
            self._world.later(PATIENCE_S, self._give_up)
        await answered
        if not task.done() or task.cancelled():
            raise UnavailableError("uplink-unavailable", "no answer came")
        return task.result()

    def begin(self, stream: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have a task of the server's own pass something on."""
        task = asyncio.ensure_future(stream)
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        return task

    async def report(self, report: NodeReport) -> int:
        """As `Nodes.report`, and it is known which report a commit is of."""
        reporting.set(report)
        return await self.nodes.report(report)

    async def _do(self, invoke: Callable[[Server], Awaitable[T]]) -> T:
        try:
            return await invoke(self)
        except ShellWeGoError:
            raise
        except Exception as error:
            self._world.watch.violated("defect", f"a call failed at {self.name}: {error!r}")
            raise UnavailableError("uplink-unavailable", "internal error") from error

    def _done(self, task: asyncio.Task[object]) -> None:
        answered = self._calls.pop(task)
        if not task.cancelled():
            task.exception()
        if not answered.done():
            answered.set_result(None)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """A part that ends takes its server down; nothing that can happen from outside may do that."""
        if self.alive and not task.cancelled():
            self._world.watch.violated("part-ended", f"{name} of {self.name} ended: {task.exception()!r}")
