"""Faults: begun at their hour, ended after their time, and all ended at the healing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from shellwego.core.errors import UnavailableError
from shellwego.core.liveness import DEFAULT_TERMS
from shellwego.core.vms import VmPhase
from tests.sim.story import NODE_DEAD, Fault

if TYPE_CHECKING:
    from tests.sim.hosts import NodeHost
    from tests.sim.world import World

Undo = Callable[[], Awaitable[None]]
_SILENT_S, _HEARD_S = 6.5, 2.5
_VERGE_HEARD_S = 1.0
_VERGE_S = (-0.3, 1.1)
"""So long after a node could be judged down its word comes through: it is looked at now and then, and a judgement takes its
time, as what is said does."""


class Faults:
    """Those that are going on now."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._active: Counter[str] = Counter()
        self._undo: dict[int, tuple[str, Undo]] = {}
        self._count = 0

    def on(self, kind: str) -> bool:
        """Whether one of this kind is going on."""
        return self._active.get(kind, 0) > 0

    @property
    def kinds(self) -> list[str]:
        """Of all that are going on."""
        return sorted(+self._active)

    async def begin(self, fault: Fault) -> None:
        self._world.watch.note(f"fault {fault.kind} ({fault.number}) begins")
        self._active[fault.kind] += 1
        act = getattr(self, "_" + fault.kind.replace("-", "_"), self._nothing)
        self._count += 1
        number = self._count
        self._undo[number] = fault.kind, await act(fault)
        if fault.kind != NODE_DEAD:
            self._world.later(fault.seconds, lambda: self._end(number))

    async def heal(self) -> None:
        """End all that can be ended."""
        for number, (kind, _) in list(self._undo.items()):
            if kind != NODE_DEAD:
                await self._end(number)

    async def _end(self, number: int) -> None:
        kind, undo = self._undo.pop(number, ("", None))
        if undo is not None:
            self._world.watch.note(f"fault {kind} ends")
            self._active[kind] -= 1
            await undo()

    async def _nothing(self, fault: Fault) -> Undo:
        """It is asked for by `on`, on the ways."""
        return _done

    async def _node_cut(self, fault: Fault) -> Undo:
        return await self._cut_off(self._world.nodes[fault.number % len(self._world.nodes)])

    async def _cut_off(self, node: NodeHost) -> Undo:
        node.wire.mute = node.bus.cut = True
        return _setter((node.wire, "mute"), (node.bus, "cut"))

    async def _node_away(self, fault: Fault) -> Undo:
        """For longer than anything on it may have a volume that a standby copy could become; mostly where there is one."""
        nodes = self._world.nodes
        if fault.number % 4:
            nodes = self._followed() or nodes
        return await self._cut_off(nodes[fault.number % len(nodes)])

    def _followed(self) -> list[NodeHost]:
        """Nodes where somebody runs with a volume of which there is a copy elsewhere."""
        copied = {row.volume_id for row in self._world.rows("replicas").values() if row.taken_at is not None}
        return [node for node in self._world.nodes if any(node.engine.running_with(id_) for id_ in sorted(copied))]

    async def _node_mute(self, fault: Fault) -> Undo:
        node = self._world.nodes[fault.number % len(self._world.nodes)]
        node.wire.mute = True
        return _setter((node.wire, "mute"))

    async def _node_deaf(self, fault: Fault) -> Undo:
        node = self._world.nodes[fault.number % len(self._world.nodes)]
        node.wire.deaf = node.bus.cut = True
        return _setter((node.wire, "deaf"), (node.bus, "cut"))

    async def _node_flapping(self, fault: Fault) -> Undo:
        """It falls silent for long enough to be down, and comes back, again and again."""
        node = self._world.nodes[fault.number % len(self._world.nodes)]

        async def blink() -> None:
            while True:
                node.wire.mute = True
                await self._world.clock.sleep(_SILENT_S)
                node.wire.mute = False
                await self._world.clock.sleep(_HEARD_S)

        blinking = self._world.spawn(blink())

        async def undo() -> None:
            blinking.cancel()
            node.wire.mute = False

        return undo

    async def _node_on_the_verge(self, fault: Fault) -> Undo:
        """Its way stands still, again and again, until just when it is judged down; and what is written takes its time (see
        `StoreWay`), so that a judgement is no moment."""
        world, node = self._world, self._world.nodes[fault.number % len(self._world.nodes)]

        async def stall() -> None:
            while True:
                node.wire.stalled.close()
                patience = DEFAULT_TERMS.down_s + node.dice.uniform(*_VERGE_S)
                while (left := world.watch.heard_at(node.node_id) + patience - world.clock.monotonic()) > 0:
                    await world.clock.sleep(left)
                node.wire.stalled.open()
                await world.clock.sleep(_VERGE_HEARD_S)

        stalling = self._world.spawn(stall())

        async def undo() -> None:
            stalling.cancel()
            node.wire.stalled.open()

        return undo

    async def _agent_killed(self, fault: Fault) -> Undo:
        node = self._world.nodes[fault.number % len(self._world.nodes)]
        await node.kill()

        async def undo() -> None:
            node.start()

        return undo

    async def _agent_paused(self, fault: Fault) -> Undo:
        node = self._world.nodes[fault.number % len(self._world.nodes)]
        node.gate.close()

        async def undo() -> None:
            node.gate.open()

        return undo

    async def _node_rebooted(self, fault: Fault) -> Undo:
        node = self._world.nodes[fault.number % len(self._world.nodes)]
        await node.die()

        async def undo() -> None:
            node.start()

        return undo

    async def _node_dead(self, fault: Fault) -> Undo:
        node = self._world.nodes[fault.number % len(self._world.nodes)]
        node.dead = True
        await node.die()
        return _done

    async def _server_killed(self, fault: Fault) -> Undo:
        server = self._world.servers[fault.number % len(self._world.servers)]
        await server.kill()

        async def undo() -> None:
            if not server.alive:
                server.start()

        return undo

    async def _server_stopped(self, fault: Fault) -> Undo:
        """As by SIGTERM: it gives back what it holds."""
        server = self._world.servers[fault.number % len(self._world.servers)]
        stopping = self._world.spawn(server.stop())

        async def undo() -> None:
            await stopping
            if not server.alive:
                server.start()

        return undo

    async def _server_paused(self, fault: Fault) -> Undo:
        server = self._world.servers[fault.number % len(self._world.servers)]
        server.pause()

        async def undo() -> None:
            server.gate.open()

        return undo

    async def _server_cut(self, fault: Fault) -> Undo:
        store = self._world.servers[fault.number % len(self._world.servers)].store
        store.cut = True
        return _setter((store, "cut"))

    async def _server_deaf(self, fault: Fault) -> Undo:
        store = self._world.servers[fault.number % len(self._world.servers)].store
        store.deaf = True
        return _setter((store, "deaf"))

    async def _edge_killed(self, fault: Fault) -> Undo:
        edge = self._world.edges[fault.number % len(self._world.edges)]
        await edge.kill()

        async def undo() -> None:
            edge.start()

        return undo

    async def _edge_paused(self, fault: Fault) -> Undo:
        edge = self._world.edges[fault.number % len(self._world.edges)]
        edge.gate.close()

        async def undo() -> None:
            edge.gate.open()

        return undo

    async def _edge_cut(self, fault: Fault) -> Undo:
        edge = self._world.edges[fault.number % len(self._world.edges)]
        edge.wire.mute = edge.bus.cut = True
        return _setter((edge.wire, "mute"), (edge.bus, "cut"))

    async def _haproxy_killed(self, fault: Fault) -> Undo:
        await self._world.edges[fault.number % len(self._world.edges)].lose_haproxy()
        return _done

    async def _boots_fail(self, fault: Fault) -> Undo:
        engine = self._world.nodes[fault.number % len(self._world.nodes)].engine
        engine.boots_fail_with = "the kernel did not boot"

        async def undo() -> None:
            engine.boots_fail_with = ""

        return undo

    async def _sleep_fails(self, fault: Fault) -> Undo:
        engine = self._world.nodes[fault.number % len(self._world.nodes)].engine
        engine.sleep_fails_with = UnavailableError("snapshot-disk", "no room for the snapshot")

        async def undo() -> None:
            engine.sleep_fails_with = None

        return undo

    async def _disk_fails(self, fault: Fault) -> Undo:
        disks = self._world.nodes[fault.number % len(self._world.nodes)].engine.disks
        disks.fails_with = UnavailableError("storage-failed", "the disks do not answer")

        async def undo() -> None:
            disks.fails_with = None

        return undo

    async def _registry_away(self, fault: Fault) -> Undo:
        self._world.images.unreachable.add("registry.test")

        async def undo() -> None:
            self._world.images.unreachable.discard("registry.test")

        return undo

    async def _clock_step(self, fault: Fault) -> Undo:
        """The store's clock, or a server's; it stays so."""
        step = (-8.0, -1.0, 5.0, 90.0)[fault.number % 4]
        clocks = [self._world.store_clock, *(server.clock for server in self._world.servers)]
        clocks[fault.number // 4 % len(clocks)].skew_s += step
        return _done

    async def _vm_killed(self, fault: Fault) -> Undo:
        living = [
            (node.engine, view.vm_id)
            for node in self._world.nodes
            for view in node.engine.views
            if view.phase is VmPhase.RUNNING
        ]
        if living:
            engine, vm_id = living[fault.number % len(living)]
            engine.die(vm_id)
        return _done


async def _done() -> None:
    pass


def _setter(*flags: tuple[object, str]) -> Undo:
    async def undo() -> None:
        for owner, name in flags:
            setattr(owner, name, False)

    return undo
