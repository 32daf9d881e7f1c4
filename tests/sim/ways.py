"""What lies between the parts: the ways to the store, to the bus and to the servers, with all that can happen on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from shellwego.core.assignments import (
    Assignments,
    NodeReport,
    Registration,
    SecretsRequest,
    SecretValues,
    VolumeKey,
    VolumeKeyRequest,
)
from shellwego.core.backups import BackupAccess, BackupAccessRequest
from shellwego.core.errors import UnavailableError
from shellwego.core.names import NodeNames
from shellwego.core.publishing import NodePorts
from shellwego.core.routing import EdgeReport, RouteTable
from shellwego.ports.bus import Hint
from shellwego.ports.store import Transaction
from tests.sim.timeline import Dice, Gate, HostClock, give_way

if TYPE_CHECKING:
    from tests.sim.crashes import Mortal
    from tests.sim.server import Server
    from tests.sim.world import World

T = TypeVar("T")


@dataclass(slots=True)
class StoreWay:
    """One server's way to the store."""

    world: World
    server: Server
    gate: Gate
    clock: HostClock
    dice: Dice
    cut: bool = False
    deaf: bool = False
    """What it asks is done; it does not hear of it."""

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        await self._there()
        if self.world.faults.on("store-full"):
            raise UnavailableError("disk-full", "the store's disk is full")
        if self.world.faults.on("node-on-the-verge"):
            await self.clock.sleep(self.dice.uniform(0.0, 0.8))
        points, name = self.world.points, self.server.name
        if points.armed:
            await points.reached(self.server, "before a commit")
        result = await self.world.store.transact(lambda tx: self.world.watch.committing(name, tx, fn))
        if points.armed:
            await points.reached(self.server, "after a commit")
        await self._back()
        return result

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        await self._there()
        result = await self.world.store.read(fn)
        await self._back()
        return result

    async def close(self) -> None:
        pass

    async def _there(self) -> None:
        if not self.server.alive:
            raise UnavailableError("store-closed", "nobody is there any more who could ask")
        if self.gate.closed:
            await self.gate.passed()
        await give_way(self.dice.turns())
        if self.world.faults.on("store-slow"):
            await self.clock.sleep(self.dice.uniform(0.0, 0.8))
        if self.cut:
            await self.clock.sleep(self.dice.choice((0.01, 2.0)))
            raise UnavailableError("store-closed", "no way to the store")

    async def _back(self) -> None:
        await give_way(self.dice.turns())
        if self.deaf:
            await self.clock.sleep(self.dice.choice((0.01, 2.0)))
            raise UnavailableError("store-unknown", "the store's answer was lost")
        if self.gate.closed:
            await self.gate.passed()


@dataclass(slots=True)
class BusWay:
    """One process's way to the bus."""

    world: World
    owner: Mortal
    gate: Gate
    dice: Dice
    cut: bool = False

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        await self.gate.passed()
        await self.world.points.reached(self.owner, "before a hint")
        await give_way(self.dice.turns())
        faults = self.world.faults
        if self.cut or (faults.on("hints-lost") and self.dice.hits(0.7)):
            return
        if faults.on("hints-doubled") and self.dice.hits(0.5):
            self.world.later(self.dice.uniform(0.0, 1.0), lambda: self.world.bus.publish(subject, payload))
        if faults.on("hints-late") and self.dice.hits(0.7):
            self.world.later(self.dice.uniform(0.0, 4.0), lambda: self.world.bus.publish(subject, payload))
        else:
            await self.world.bus.publish(subject, payload)

    @asynccontextmanager
    async def subscribe(self, pattern: str) -> AsyncIterator[AsyncIterator[Hint]]:
        async with self.world.bus.subscribe(pattern) as hints:
            yield self._heard(hints)

    async def _heard(self, hints: AsyncIterator[Hint]) -> AsyncIterator[Hint]:
        async for hint in hints:
            await self.gate.passed()
            if not self.cut:
                yield hint

    async def close(self) -> None:
        pass


@dataclass(slots=True)
class Wire:
    """One caller's way to the servers: it calls the one that answered last, and turns to the next where none comes."""

    world: World
    gate: Gate
    dice: Dice
    mute: bool = False
    deaf: bool = False
    stalled: Gate = field(default_factory=Gate)
    """Nothing comes through, and nothing is lost."""
    _last: int = field(default=0)

    async def call(self, invoke: Callable[[Server], Awaitable[T]], kind: str) -> T:
        """Have a server do it; `kind` is the family of faults that it may meet (`uplink`, `client`).

        Raises:
            UnavailableError: no answer came, whatever became of it.
        """
        await self.gate.passed()
        await self.stalled.passed()
        await give_way(self.dice.turns())
        server, faults = self._server(), self.world.faults
        if self.mute or server is None:
            await self._in_vain()
        assert server is not None
        if faults.on(f"{kind}-late") and self.dice.hits(0.3):
            self._deliver_later(server, invoke, 5.0)
            await self._in_vain()
        doubled = faults.on(f"{kind}-doubled") and self.dice.hits(0.5)
        if doubled and kind == "uplink":
            self._deliver_later(server, invoke, 3.0)
        answer = await server.serve(invoke)
        if doubled and kind == "client":  # of what was refused nothing is remembered, so it would be a new request
            self._deliver_later(server, invoke, 3.0)
        await give_way(self.dice.turns())
        if self.deaf or (faults.on(f"{kind}-lost") and self.dice.hits(0.5)):
            await self._in_vain()
        await self.gate.passed()
        return answer

    async def checked(self, server: Server) -> None:
        """Whether a stream by way of this server goes on.

        Raises:
            UnavailableError: it broke off.
        """
        await self.gate.passed()
        broken = self.world.faults.on("streams-cut") and self.dice.hits(0.5)
        if broken or self.mute or self.deaf or server.gate.closed or not server.alive:
            raise UnavailableError("uplink-unavailable", "the stream broke off on its way")

    def _server(self) -> Server | None:
        servers = self.world.servers
        for step in range(len(servers)):
            index = (self._last + step) % len(servers)
            if servers[index].alive:
                self._last = index
                return servers[index]
        return None

    def _deliver_later(self, server: Server, invoke: Callable[[Server], Awaitable[T]], longest: float) -> None:
        async def deliver() -> None:
            try:
                await server.serve(invoke)
            except Exception:  # noqa: BLE001 - nobody hears of it; defects are noted where it is served
                return

        self.world.later(self.dice.uniform(0.0, longest), deliver)

    async def _in_vain(self) -> None:
        """No answer comes: refused at once, or nothing until the caller gives up."""
        self._last += 1
        await self.world.clock.sleep(self.dice.choice((0.001, 0.3, 2.0)))
        await self.gate.passed()
        raise UnavailableError("uplink-unavailable", "the control plane does not answer")


@dataclass(slots=True)
class NodeWire:
    """`ports.uplink.NodeUplink` over a wire."""

    wire: Wire

    async def register(self, registration: Registration) -> Assignments:
        return await self.wire.call(lambda server: server.nodes.register(registration), "uplink")

    async def assignments(self, node_id: str) -> Assignments:
        return await self.wire.call(lambda server: server.nodes.assignments(node_id), "uplink")

    async def report(self, report: NodeReport) -> int:
        return await self.wire.call(lambda server: server.report(report), "uplink")

    async def names(self, node_id: str) -> NodeNames:
        return await self.wire.call(lambda server: server.nodes.names(node_id), "uplink")

    async def ports(self, node_id: str) -> NodePorts:
        return await self.wire.call(lambda server: server.nodes.ports(node_id), "uplink")

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        return await self.wire.call(lambda server: server.nodes.secrets(request), "uplink")

    async def backup_access(self, request: BackupAccessRequest) -> BackupAccess:
        return await self.wire.call(lambda server: server.nodes.backup_access(request), "uplink")

    async def volume_key(self, request: VolumeKeyRequest) -> VolumeKey:
        return await self.wire.call(lambda server: server.nodes.volume_key(request), "uplink")


@dataclass(slots=True)
class MemoryWire:
    """`ports.uplink.Memories` over a wire, which may break in the middle."""

    wire: Wire

    def memory(self, node_id: str, instance_id: str) -> AsyncGenerator[bytes]:
        return _passed_on(self.wire, lambda server: server.memories.memory(node_id, instance_id))


@dataclass(slots=True)
class ReplicaWire:
    """`ports.uplink.Replicas` over a wire, which may break in the middle."""

    wire: Wire

    def replica(self, node_id: str, replica_id: str, snapshot_id: str, since: str) -> AsyncGenerator[bytes]:
        return _passed_on(self.wire, lambda server: server.replicas.replica(node_id, replica_id, snapshot_id, since))


async def _passed_on(wire: Wire, opened: Callable[[Server], AsyncGenerator[bytes]]) -> AsyncGenerator[bytes]:
    """What a server passes on. It breaks off where the server ends."""
    server = await wire.call(_itself, "uplink")
    chunks: asyncio.Queue[bytes | asyncio.Task[None]] = asyncio.Queue()

    async def pour() -> None:
        async with aclosing(opened(server)) as stream:
            async for chunk in stream:
                chunks.put_nowait(chunk)

    pouring = server.begin(pour())
    pouring.add_done_callback(chunks.put_nowait)
    try:
        while isinstance(chunk := await chunks.get(), bytes):
            await wire.checked(server)
            yield chunk
        await wire.checked(server)
        if chunk.cancelled():
            raise UnavailableError("uplink-unavailable", "the stream broke off with its server")
        chunk.result()
    finally:
        await cancelled([pouring])


async def _itself(server: Server) -> Server:
    return server


@dataclass(slots=True)
class EdgeWire:
    """`ports.uplink.EdgeUplink` over a wire."""

    wire: Wire

    async def register_edge(self, name: str) -> str:
        return await self.wire.call(lambda server: server.edges.register_edge(name), "uplink")

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        return await self.wire.call(lambda server: server.edges.routes(edge_id, known_version), "uplink")

    async def report_edge(self, report: EdgeReport) -> None:
        await self.wire.call(lambda server: server.edges.report_edge(report), "uplink")


async def cancelled(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
