"""A volume that is written all the time goes from one engine to another, over two agents and a control plane, on real files
and real time; only the VMs are pretended, so that nothing but the volume takes time."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.choose import choose_volumes
from plasmavmc.storage.volumes.memory import MemoryVolumes
from plasmavmc.storage.volumes.zfs.driver import open_zfs_volumes
from shellwego.agent.daemon import Agent
from shellwego.agent.state import NodeState
from shellwego.control import volumemoves, volumes
from shellwego.control.edges import Edges
from shellwego.control.nodes import Nodes
from shellwego.control.replicastreams import NodeReplicas
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control
from shellwego.control.volumekeys import VolumeKeys
from shellwego.core.apps import Mount
from shellwego.core.moves import MoveStage
from shellwego.core.nodes import Backend
from shellwego.core.volumes import Volume
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.plasmavmc import PlasmaEngine
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.drivers.uplink.memory import MemoryLink, MemoryNodeUplink
from tests.agent.agent_world import FakeProber
from tests.contract.zfs_pool import RootZfs, pool
from tests.control.rollout_world import PRJ, FakeEdge, World
from tests.engine.engine_rig import EngineRig

pytestmark = pytest.mark.real

MIB = 1 << 20
SIZE = 64 * MIB
WRITTEN = 24 * MIB
BEHIND_HEADER = 4 * MIB
PATIENCE_S = 60.0


class RealWorld(World):
    """As that, by the system's clock; whoever waits polls."""

    def __init__(self) -> None:
        self.clock = cast(VirtualClock, SystemClock())
        self.store = MemoryStore(self.clock)
        self.control = Control(self.store, MemoryBus(), self.clock)
        self.sealer = Sealer(self.control, MemoryKms())
        self.nodes = Nodes(self.control, self.sealer)
        self.edges = Edges(self.control)
        self.tasks, self.loops = [], []
        self.app_id = ""


class RealHost:
    """An engine whose volumes are real, and its agent."""

    def __init__(self, world: RealWorld, streams: MemoryStreams, directory: Path, driver: VolumeDriver) -> None:
        self.rig = EngineRig(directory)
        self.driver = driver
        self.rig.volumes = cast(MemoryVolumes, driver)
        self.manager = self.rig.manager()
        backend = Backend(name="memory", status="ready", volumes=True, encryption=True, max_vcpus=8)
        self.engine = PlasmaEngine(
            self.manager,
            backends=lambda: (backend,),
            disk_dir=directory,
            version="test",
            confinement=lambda: "none",
            network=self.rig.parts.network,
            images=lambda: (self.rig.sample.digest,),
        )
        self.agent = Agent(
            engine=self.engine,
            uplink=MemoryNodeUplink(world.nodes, MemoryLink(world.clock)),
            listener=streams,
            bus=world.control.bus,
            clock=world.clock,
            name=directory.name,
            state=NodeState(directory / "agent"),
            prober=FakeProber(world.clock),
            replicas=NodeReplicas(world.control, streams),
        )

    async def holds(self, volume_id: str) -> str:
        """The sum of all that is stored."""
        file = await self.driver.open(volume_id)
        try:
            return hashlib.file_digest(os.fdopen(file, "rb", closefd=False), "sha256").hexdigest()
        finally:
            os.close(file)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        await asyncio.sleep(0.02)


def write_while_held(host: RealHost, file: int, volume_id: str) -> None:
    """As the VM that has the volume: until it has it no more."""
    number = 0
    while host.manager.volumes.holdings.of(volume_id):
        at = BEHIND_HEADER + number * 7 * 4096 % WRITTEN
        os.pwrite(file, os.urandom(4096), at)
        number += 1
        time.sleep(0.0005)


@asynccontextmanager
async def platform(
    here: VolumeDriver, there: VolumeDriver, directory: Path
) -> AsyncIterator[tuple[RealWorld, list[RealHost]]]:
    world, streams = RealWorld(), MemoryStreams()
    await world.control.commit(world._seed)
    world.start_loops()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(world.end)
        hosts = []
        for name, driver in (("here", here), ("there", there)):
            host = RealHost(world, streams, directory / name, driver)
            hosts.append(host)
            world.spawn(host.agent.run())
            await asyncio.wait_for(host.agent.registered(), PATIENCE_S)
        yield world, hosts
        for host in hosts:
            await host.engine.close(keep_vms=False)


async def is_sent_whole(here: VolumeDriver, there: VolumeDriver, directory: Path) -> None:
    async with platform(here, there, directory) as (world, hosts):
        old, new = hosts
        edge = FakeEdge(world.clock, world.edges)
        world.spawn(edge.run())
        project = world.peek(lambda tx: tx.projects.get(PRJ))
        assert project is not None
        key = await VolumeKeys(world.control, world.sealer).for_new(project, None)
        wish = volumes.VolumeWish(name="data", size_bytes=SIZE)
        made = await world.control.commit(lambda unit: volumes.create_volume(unit, project, wish, key))

        def volume() -> Volume:
            found = world.peek(lambda tx: tx.volumes.get(made.id))
            assert found is not None
            return found

        mount = Mount(source="data", destination="/data", volume_id=made.id)
        await world.deploy("hello:v1", digest=old.rig.sample.digest, mounts=(mount,))
        await until(lambda: bool(edge.endpoints()))
        source, target = (old, new) if volume().node_id == old.agent.node_id else (new, old)
        file = await source.driver.open(made.id)
        writer = threading.Thread(target=write_while_held, args=(source, file, made.id))
        writer.start()
        there_row = world.peek(lambda tx: tx.nodes.get(target.agent.node_id))
        assert there_row is not None
        await world.control.commit(lambda unit: volumemoves.move_volume(unit, volume(), there_row))
        await until(lambda: not writer.is_alive())
        written = os.dup(file)
        os.close(file)
        with os.fdopen(written, "rb") as last:
            last.seek(0)
            sum_of_source = hashlib.file_digest(last, "sha256").hexdigest()
        assert await _settled(volume, source, target, made.id) == sum_of_source
        await until(lambda: bool(edge.endpoints()))
        assert [each.volume_id for each in await source.driver.volumes()] == []


async def _settled(volume: Callable[[], Volume], source: RealHost, target: RealHost, volume_id: str) -> str:
    """What the volume holds once its move is done."""

    def ended() -> bool:
        move = volume().move
        return move is not None and not move.active

    await until(ended)
    move = volume().move
    assert move is not None
    assert (move.stage, volume().node_id) == (MoveStage.DONE, target.agent.node_id), move
    assert move.rounds >= 2
    assert move.stopped_s is not None
    return await target.holds(volume_id)


async def test_a_volume_that_is_written_all_the_time_arrives_as_it_was_left(tmp_path: Path) -> None:
    await is_sent_whole(choose_volumes(tmp_path / "one"), choose_volumes(tmp_path / "two"), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("direction", ["in", "out"])
async def test_so_does_one_from_and_to_zfs(tmp_path: Path, direction: str) -> None:
    with pool(768 * MIB) as tank:
        root = RootZfs(tank, tmp_path / "zfs", "swg-move")
        try:
            zfs, files = await open_zfs_volumes(root), choose_volumes(tmp_path / "files")
            await is_sent_whole(*((files, zfs) if direction == "in" else (zfs, files)), tmp_path)
        finally:
            root.close()
