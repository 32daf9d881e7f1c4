"""All of the control plane, agents over engines in memory, and a store of objects: enough for backups to be taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from shellwego.control import backups, volumes
from shellwego.control.loops import backups as backups_loop
from shellwego.control.loops import vaults as vaults_loop
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer, Sealing
from shellwego.control.unit import Unit
from shellwego.control.vaults import Vaults
from shellwego.control.volumekeys import VolumeKeys
from shellwego.core.apps import Mount
from shellwego.core.backups import Backup, BackupState, RepositoryPlace
from shellwego.core.chunks import VaultCipher
from shellwego.core.errors import UnavailableError
from shellwego.core.nodes import Node
from shellwego.core.sensitive import Sensitive
from shellwego.core.tenancy import Project
from shellwego.core.volumes import Volume, VolumeState, restated
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.objects.memory import MemoryObjects
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects
from tests.agent.agent_host import AgentHost
from tests.control.rollout_world import PRJ, World

T = TypeVar("T")
GIB = 1 << 30
PASSWORD = "the key of the store"
NO_ROOM = "there is no room left"
AWAY = UnavailableError("objects-unavailable", "the store is away")
PLACE = RepositoryPlace(url="memory:", credentials={"secret_access_key": Sensitive.of(PASSWORD)})


class GatedObjects(MemoryObjects):
    """Puts objects only while its gate is open, and as many as there is room for. A put that was sent arrives, whatever
    becomes of who sent it, as where a thread does it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.gated = ""
        """The gate is there for paths with this in them."""
        self.waiting = 0
        self.room = 1_000
        """For so many objects."""
        self._sent = set[asyncio.Task[None]]()

    async def put(self, path: str, data: bytes) -> None:
        sent = asyncio.create_task(self._put(path, data))
        self._sent.add(sent)
        sent.add_done_callback(self._arrived)
        await asyncio.shield(sent)

    def _arrived(self, sent: asyncio.Task[None]) -> None:
        self._sent.discard(sent)
        if not sent.cancelled():
            sent.exception()  # told to who sent it, if he is there still

    async def _put(self, path: str, data: bytes) -> None:
        if self.gated in path:
            self.waiting += 1
            await self.gate.wait()
            self.waiting -= 1
        if len(self.kept.keys() | {path}) > self.room:
            raise UnavailableError("objects-unavailable", NO_ROOM)
        await super().put(path, data)


class Host(AgentHost):
    def __init__(self, platform: Platform, name: str, state_dir: Path) -> None:
        super().__init__(platform.world, name, state_dir, platform.nodes)
        self._platform = platform

    def further(self) -> dict[str, Any]:
        return {**super().further(), "open_objects": self._platform.opened}

    def snapshots(self) -> list[str]:
        return [each for volume in self.engine.disks.kept.values() for each in volume.snapshots]


class Platform:
    """With one volume, `data`, that an app on node `one` has mounted; in clear, unless somebody says otherwise before it is
    opened."""

    def __init__(self, scratch: Path) -> None:
        self.encrypted = False
        self.world = World()
        self.clock = self.world.clock
        self.objects = GatedObjects()
        self.kms = MemoryKms()
        self.sealer = Sealer(self.world.control, self.kms)
        self.vaults = Vaults(self.world.control, self.sealer, PLACE)
        self.nodes = Nodes(self.world.control, self.sealer, PLACE)
        self.keys = VolumeKeys(self.world.control, self.sealer)
        self.hosts = [Host(self, name, scratch / name) for name in ("one", "two")]
        self.volume_id = ""

    def opened(self, place: RepositoryPlace) -> MemoryObjects:
        assert place == PLACE
        return self.objects

    async def open(self) -> None:
        await self.world.begin()
        for loop in (
            backups_loop.run(self.world.control, self.vaults),
            vaults_loop.run(self.world.control, self.vaults, self.objects),
        ):
            self.world.spawn(loop)
        self.hosts[0].start()
        await self.clock.advance(1)
        await self.world.edge()
        key = await self.keys.for_new(self.world.peek(project), None) if self.encrypted else None
        self.volume_id = (await self.commit(lambda unit: _made(unit, key))).id
        mount = Mount(source="data", destination="/data", volume_id=self.volume_id)
        await self.world.finished(await self.world.deploy("img", mounts=(mount,)))
        self.hosts[1].start()
        await self.clock.until(lambda: len(self.rows(lambda tx: tx.nodes.select())) == 2)

    async def close(self) -> None:
        for host in self.hosts:
            await host.kill()
        await self.world.end()
        for host in self.hosts:
            await host.engine.close(keep_vms=False)

    async def commit(self, use_case: Callable[[Unit], T]) -> T:
        return await self.world.control.commit(use_case)

    def rows(self, look: Callable[[Transaction], list[T]]) -> list[T]:
        return self.world.peek(look)

    def volume(self, name: str = "data") -> Volume:
        return self.rows(lambda tx: tx.volumes.select(eq("name", name)))[0]

    def node(self, name: str) -> Node:
        return self.rows(lambda tx: tx.nodes.select(eq("name", name)))[0]

    def backup(self, id_: str) -> Backup:
        found = self.world.peek(lambda tx: tx.backups.get(id_))
        assert found is not None
        return found

    def write(self, text: str) -> None:
        """As the app does."""
        self.hosts[0].engine.disks.kept[self.volume_id].holds = text

    async def back_up(self) -> str:
        """Ask for a backup; returns its id."""
        taken = await self.commit(
            lambda unit: backups.request_backup(unit, project(unit.tx), self.in_(unit.tx), freeze=False)
        )
        return taken.id

    async def backed_up(self, text: str) -> str:
        """Have a backup of a volume that holds this."""
        self.write(text)
        id_ = await self.back_up()
        await self.becomes(id_, BackupState.AVAILABLE)
        return id_

    async def restored(self, id_: str, name: str = "again") -> Volume:
        """A volume made of a backup, and not mounted yet."""
        source = self.world.peek(self.in_)
        key = await self.keys.for_new(self.world.peek(project), source) if source.encrypted else None
        return await self.commit(
            lambda unit: backups.restore_backup(unit, source, backups.find_backup(unit.tx, source, id_), name, key)
        )

    async def place(self, volume: Volume, node: str) -> None:
        """As the placement of an app that mounts it does."""
        node_id = self.node(node).id

        def work(unit: Unit) -> None:
            row = unit.tx.volumes.get(volume.id)
            assert row is not None
            unit.tx.volumes.update(restated(replace(row, node_id=node_id)))
            unit.hint(subjects.assignments(node_id))

        await self.commit(work)

    async def becomes(self, id_: str, state: BackupState) -> None:
        await self.clock.until(lambda: self.backup(id_).state is state)

    async def settles(self, name: str, state: VolumeState) -> None:
        await self.clock.until(lambda: self.volume(name).state is state)

    async def let_go(self, id_: str) -> None:
        await self.commit(
            lambda unit: backups.delete_backup(
                unit, self.in_(unit.tx), backups.find_backup(unit.tx, self.in_(unit.tx), id_)
            )
        )

    def in_(self, tx: Transaction) -> Volume:
        volume = tx.volumes.get(self.volume_id)
        assert volume is not None
        return volume

    def chunks(self) -> set[str]:
        return {path for path in self.objects.kept if "/chunks/" in path}

    async def cipher(self) -> VaultCipher:
        (vault,) = self.rows(lambda tx: tx.vaults.select())
        return VaultCipher(await self.vaults.key(vault, self.world.peek(project)))


def project(tx: Transaction) -> Project:
    found = tx.projects.get(PRJ)
    assert found is not None
    return found


def _made(unit: Unit, key: Sealing | None) -> Volume:
    return volumes.create_volume(unit, project(unit.tx), volumes.VolumeWish(name="data", size_bytes=GIB), key)
