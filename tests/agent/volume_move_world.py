"""Hosts with real agents, one control plane, and an app with a volume that goes from one host to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from shellwego.control import nodeadmin, scheduling, volumemoves, volumes
from shellwego.control.drains import drain_plan
from shellwego.control.unit import Unit
from shellwego.control.volumekeys import VolumeKeys
from shellwego.core.apps import Mount
from shellwego.core.drain import DrainPlan
from shellwego.core.errors import ShellWeGoError
from shellwego.core.moves import MoveStage, VolumeMove
from shellwego.core.nodes import NodeHealth
from shellwego.core.replicas import Replica, marked
from shellwego.core.sensitive import Sensitive
from shellwego.core.vms import VmPhase
from shellwego.core.volumes import Volume, VolumeState
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.store import Store
from shellwego.ports.uplink import Replicas
from tests.agent.move_world import Host, Hosts
from tests.control.rollout_world import PRJ

GIB = 1 << 30
TEXT = "what the app wrote, and more of it. " * 400
"""Several pieces on its way."""
SETTLED = (VolumeState.AVAILABLE, VolumeState.ATTACHED)


class Road:
    """The way between the nodes: what the test says happens to a piece of what is sent, by its number from 0."""

    def __init__(self, real: Replicas, clock: VirtualClock) -> None:
        self._real = real
        self._clock = clock
        self.stalls: Callable[[], bool] = lambda: False
        self.on_piece: Callable[[int, bytes], bytes] = lambda _, piece: piece
        self.asked: list[tuple[str, str]] = []
        """Each snapshot that was asked for, and what it is to differ from."""

    async def replica(self, node_id: str, replica_id: str, snapshot_id: str, since: str) -> AsyncGenerator[bytes]:
        self.asked.append((snapshot_id, since))
        while self.stalls():
            await self._clock.sleep(0.05)
        async with aclosing(self._real.replica(node_id, replica_id, snapshot_id, since)) as pieces:
            number = 0
            async for piece in pieces:
                yield self.on_piece(number, piece)
                number += 1


class VolumeHosts(Hosts):
    """`old` has the volume, and the app that writes to it; `new` has room."""

    def __init__(self, directory: Path, open_store: Callable[[VirtualClock], Store] = MemoryStore) -> None:
        super().__init__(directory, open_store)
        self.road = Road(self.replicas, self.clock)
        self.replicas = self.road
        self.volume_id = ""
        self.most_owners = 0
        self._key: Sensitive | None = None
        self._watch: asyncio.Task[None] | None = None

    async def open(self, *names: str, encrypted: bool = False) -> None:
        await self.world.begin()
        self.old.start()
        await self.clock.advance(1)
        self.edge = await self.world.edge()
        made = await self._make(encrypted)
        self.volume_id = made.id
        mount = Mount(source="data", destination="/data", volume_id=made.id)
        await self.world.finished(await self.world.deploy("hello:v1", mounts=(mount,)))
        await self.clock.until(lambda: len(self.edge.endpoints()) == 1, 60)
        self.write(self.old, TEXT)
        self._key = self.old.engine.disks.kept[self.volume_id].key
        for name in names:
            await self.join(name)
        self._watch = asyncio.create_task(self._count())

    async def _make(self, encrypted: bool) -> Volume:
        control = self.world.control
        project = self.world.peek(lambda tx: tx.projects.get(PRJ))
        assert project is not None
        key = None
        if encrypted:
            key = await VolumeKeys(control, self.world.sealer).for_new(project, None)
        wish = volumes.VolumeWish(name="data", size_bytes=GIB)
        return await control.commit(lambda unit: volumes.create_volume(unit, project, wish, key))

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().close()

    async def _count(self) -> None:
        while True:
            await self.clock.sleep(0.005)
            self.most_owners = max(self.most_owners, len(self.owners()))

    def owners(self) -> list[str]:
        """VMs that have the volume now, wherever they are."""
        return [view.vm_id for host in self.all for view in host.engine.disks.views() if view.vm_id]

    def write(self, host: Host, text: str) -> None:
        host.engine.disks.kept[self.volume_id].holds = text

    def holds(self, host: Host) -> str | None:
        kept = host.engine.disks.kept.get(self.volume_id)
        return None if kept is None else kept.holds

    @property
    def volume(self) -> Volume:
        found = self.world.peek(lambda tx: tx.volumes.get(self.volume_id))
        assert found is not None
        return found

    @property
    def move(self) -> VolumeMove:
        assert self.volume.move is not None
        return self.volume.move

    @property
    def kept(self) -> list[Replica]:
        return self.world.peek(lambda tx: tx.replicas.select())

    async def start_move(self, host: Host | None = None) -> None:
        target = host or self.new
        await self.world.control.commit(lambda unit: self.ask_move(unit, target))

    def ask_move(self, unit: Unit, host: Host) -> Volume:
        return volumemoves.move_volume(unit, self.volume, self.row(host))

    async def moved(self, host: Host | None = None) -> None:
        """All is over, and nothing is left but what should be: the volume on the host, and the app serving there."""
        target = host or self.new
        await self.clock.until(lambda: not self.move.active, 600)
        await self.clock.until(self._is_quiet, 120)
        await self.clock.advance(5)
        assert self.volume.node_id == target.id
        assert [host.name for host in self.all if self.holds(host) is not None] == [target.name]
        assert target.engine.disks.kept[self.volume_id].snapshots == {}
        assert self._is_quiet()
        assert self.most_owners == 1

    def _is_quiet(self) -> bool:
        live = self.world.live()
        serving = len(live) == 1 and live[0].node_id == self.volume.node_id
        return not self.kept and serving and self.volume.state in SETTLED and len(self.edge.endpoints()) == 1

    async def die(self, host: Host) -> None:
        """The host loses power."""
        await host.kill()
        for vm in list(host.engine._vms.values()):
            if vm.view.phase is not VmPhase.ENDED:
                host.engine.die(vm.view.vm_id)

    async def dies_after_the_switch(self) -> None:
        """The volume goes to `new`, which dies for good before it told of it."""
        await self.start_move()
        await self.clock.until(lambda: self.move.stage is MoveStage.ARRIVING, 60)
        await self.die(self.new)
        await self.clock.until(lambda: self.row(self.new).health is NodeHealth.DOWN, 60)
        assert self.move.stage is MoveStage.ARRIVING

    async def remove(self, host: Host) -> None:
        row = self.row(host)
        await self.world.control.commit(lambda unit: nodeadmin.remove_node(unit, row, force=True))

    async def is_back(self) -> None:
        """The volume is on `old` again, with its app, and no marker is left of the copy that it was."""
        await self.clock.until(self._is_quiet, 120)
        await self.clock.advance(5)
        assert self._is_quiet()
        assert (self.volume.node_id, self.most_owners) == (self.old.id, 1)
        snapshots = self.old.engine.disks.kept[self.volume_id].snapshots
        assert [each for each in snapshots if marked(each) is not None] == []

    async def stays(self) -> None:
        """The volume is where it was, with its app, and nothing else is left."""
        await self.clock.until(self._is_quiet, 120)
        await self.clock.advance(5)
        assert self.volume.node_id == self.old.id
        assert (self.holds(self.old), self.holds(self.new)) == (TEXT, None)
        assert self.old.engine.disks.kept[self.volume_id].snapshots == {}
        assert self._is_quiet()

    @property
    def old_key(self) -> Sensitive | None:
        return self._key

    async def snapshot(self, text: str) -> str:
        """Have the app write a text, and keep it in a snapshot."""
        self.write(self.old, text)
        taken = await self.world.control.commit(lambda unit: volumes.take_snapshot(unit, self.volume))
        await self.clock.until(lambda: self.volume.state is VolumeState.ATTACHED, 60)
        return taken.id

    async def cordon(self, host: Host) -> None:
        await self.world.control.commit(lambda unit: scheduling.cordon(unit, self.row(host)))

    async def uncordon(self, host: Host) -> None:
        await self.world.control.commit(lambda unit: scheduling.uncordon(unit, self.row(host)))

    def plan(self) -> DrainPlan:
        """What is next for the old node, which is emptied."""
        found = self.world.peek(lambda tx: drain_plan(tx, self.row(self.old)))
        assert found is not None
        return found

    async def offer(self, host: Host, **facts: object) -> None:
        """The node tells this of itself from now on; its agent is silent."""
        await host.kill()

        def change(unit: Unit) -> None:
            row = self.row(host)
            unit.tx.nodes.update(replace(row, facts=replace(row.facts, **facts)))  # type: ignore[arg-type]

        await self.world.control.commit(change)

    async def refused(self, work: Callable[[Unit], object]) -> ShellWeGoError:
        try:
            await self.world.control.commit(work)
        except ShellWeGoError as error:
            return error
        raise AssertionError("it was not refused")
