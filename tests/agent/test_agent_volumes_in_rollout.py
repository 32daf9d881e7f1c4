"""An app with a volume, on real agents: one owner at any moment, through deploys, crashes and the death of its node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from shellwego.control import nodeadmin, volumes
from shellwego.control.apps import stop_app
from shellwego.control.drains import drain_plan
from shellwego.control.unit import Unit
from shellwego.core.apps import Mount
from shellwego.core.deployments import DeploymentState
from shellwego.core.instances import Phase
from shellwego.core.nodes import DrainOrder, Node, NodeHealth, Scheduling
from shellwego.core.tenancy import Project
from shellwego.core.vms import VmPhase
from shellwego.core.volumes import SnapshotState, Volume, VolumeState
from shellwego.drivers.uplink.memory import LinkState
from shellwego.ports.store import Transaction
from tests.agent.agent_host import AgentHost
from tests.control.rollout_world import PRJ, World

T = TypeVar("T")
GIB = 1 << 30


class Host(AgentHost):
    def alive(self) -> list[str]:
        """VMs that have the volume."""
        return [view.vm_id for view in self.engine.disks.views() if view.vm_id]


class Platform:
    """All of the control plane, and two real agents over engines that outlive them."""

    def __init__(self, scratch: Path) -> None:
        self.world = World()
        self.clock = self.world.clock
        self.hosts = [Host(self.world, name, scratch / name) for name in ("one", "two")]
        self.volume_id = ""
        self.most_owners = 0

    async def open(self) -> None:
        await self.world.begin()
        for host in self.hosts:
            host.start()
        await self.clock.advance(1)
        await self.world.edge()
        wish = volumes.VolumeWish(name="data", size_bytes=GIB)
        made = await self.world.control.commit(lambda unit: volumes.create_volume(unit, _project(unit), wish))
        self.volume_id = made.id
        self._watch = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            running = [
                vm
                for host in self.hosts
                for vm in host.engine._vms.values()
                if vm.order.workload.mounts and vm.view.phase is not VmPhase.ENDED
            ]
            self.most_owners = max(self.most_owners, len(running))
            await self.clock.sleep(0.02)

    async def close(self) -> None:
        self._watch.cancel()
        for host in self.hosts:
            await host.kill()
        await self.world.end()
        for host in self.hosts:
            await host.engine.close(keep_vms=False)

    async def change(self, use_case: Callable[[Unit, Volume], T]) -> T:
        """Run a use case on the volume as it is then."""
        return await self.world.control.commit(lambda unit: use_case(unit, self._volume(unit.tx)))

    def _volume(self, tx: Transaction) -> Volume:
        found = tx.volumes.get(self.volume_id)
        assert found is not None
        return found

    async def begin(self, image: str, **options: object) -> str:
        mount = Mount(source="data", destination="/data", volume_id=self.volume_id)
        return await self.world.deploy(image, mounts=(mount,), **options)  # type: ignore[arg-type]

    async def deploy(self, image: str, **options: object) -> DeploymentState:
        return (await self.world.finished(await self.begin(image, **options))).state

    @property
    def volume(self) -> Volume:
        return self.world.peek(self._volume)

    @property
    def home(self) -> Host:
        return next(host for host in self.hosts if self.node(host.name).id == self.volume.node_id)

    def node(self, name: str) -> Node:
        return next(node for node in self.world.peek(lambda tx: tx.nodes.select()) if node.name == name)

    async def becomes(self, state: VolumeState) -> None:
        await self.clock.until(lambda: self.volume.state is state)

    def waiting(self) -> str:
        return next((i.placement_reason for i in self.world.live() if i.phase is Phase.PENDING), "")


def _project(unit: Unit) -> Project:
    project = unit.tx.projects.get(PRJ)
    assert project is not None
    return project


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    platform = Platform(tmp_path)
    await platform.open()
    yield platform
    await platform.close()


async def test_its_first_instance_chooses_where_it_lives_and_every_deploy_follows_with_one_owner(
    platform: Platform,
) -> None:
    assert (platform.volume.state, platform.volume.node_id) == (VolumeState.AVAILABLE, "")
    assert await platform.deploy("v1") is DeploymentState.SUCCEEDED
    await platform.becomes(VolumeState.ATTACHED)
    home = platform.home
    home.engine.disks.kept[platform.volume_id].holds = "orders"
    for number, strategy in enumerate(("rolling", "bluegreen", "immediate", "canary")):
        assert await platform.deploy(f"w{number}", strategy=strategy) is DeploymentState.SUCCEEDED, strategy
        assert platform.home is home
    assert home.engine.disks.kept[platform.volume_id].holds == "orders"
    assert platform.most_owners == 1
    await platform.world.ask(stop_app)
    await platform.becomes(VolumeState.AVAILABLE)


async def test_a_release_that_fails_gives_the_volume_back_to_the_one_before(platform: Platform) -> None:
    assert await platform.deploy("v1") is DeploymentState.SUCCEEDED
    platform.home.engine.boots_fail_with = "no boot"
    assert await platform.deploy("v2") is DeploymentState.ROLLED_BACK
    platform.home.engine.boots_fail_with = ""
    await platform.clock.until(lambda: bool(platform.world.serving()), 120)
    await platform.becomes(VolumeState.ATTACHED)
    assert platform.most_owners == 1


async def test_an_app_whose_data_is_on_a_dead_node_only_waits_says_so_and_comes_back_with_it(
    platform: Platform,
) -> None:
    assert await platform.deploy("v1") is DeploymentState.SUCCEEDED
    home = platform.home
    home.engine.disks.kept[platform.volume_id].holds = "orders"
    home.link.state = LinkState.CUT
    await platform.clock.until(lambda: platform.node(home.name).health is NodeHealth.DOWN, 60)
    told = "no node fits: 1 holds the volume data and is down, 1 does not hold the volume data"
    await platform.clock.until(lambda: platform.waiting() == told, 60)
    assert home.alive(), "nobody could stop it there, and nobody else has its data"
    assert platform.volume.state is VolumeState.AVAILABLE
    home.link.state = LinkState.UP
    await platform.clock.until(lambda: bool(platform.world.serving()), 60)
    assert platform.home is home
    assert home.engine.disks.kept[platform.volume_id].holds == "orders"
    assert platform.most_owners == 1


async def test_a_drain_says_that_it_cannot_move_and_lets_it_be(platform: Platform) -> None:
    assert await platform.deploy("v1") is DeploymentState.SUCCEEDED
    home = platform.node(platform.home.name)

    def drain(unit: Unit) -> None:
        node = unit.tx.nodes.get(home.id)
        assert node is not None
        unit.tx.nodes.update(replace(node, scheduling=Scheduling.DRAINING, drain=DrainOrder(since=unit.now())))

    await platform.world.control.commit(drain)
    await platform.clock.advance(30)
    plan = platform.world.peek(lambda tx: drain_plan(tx, platform.node(home.name)))
    assert plan is not None
    (waiting,) = plan.waiting
    assert waiting.reason == "no node fits: 1 holds the volume data and is draining, 1 does not hold the volume data"
    assert len(platform.world.serving()) == 1


async def test_a_volume_is_kept_put_back_copied_and_destroyed(platform: Platform) -> None:
    assert await platform.deploy("v1") is DeploymentState.SUCCEEDED
    disks = platform.home.engine.disks
    disks.kept[platform.volume_id].holds = "before"
    snapshot = await platform.change(volumes.take_snapshot)
    assert platform.volume.state is VolumeState.SNAPSHOTTING
    await platform.becomes(VolumeState.ATTACHED)
    disks.kept[platform.volume_id].holds = "after"
    taken = platform.world.peek(lambda tx: tx.snapshots.get(snapshot.id))
    assert taken is not None
    assert taken.state is SnapshotState.AVAILABLE

    wish = volumes.VolumeWish(name="copy", snapshot_id=snapshot.id)
    copy = await platform.world.control.commit(lambda unit: volumes.create_volume(unit, _project(unit), wish))
    await platform.clock.until(lambda: copy.id in disks.kept)
    assert disks.kept[copy.id].holds == "before"

    await platform.world.ask(stop_app)
    await platform.becomes(VolumeState.AVAILABLE)
    await platform.change(lambda unit, row: volumes.restore_volume(unit, row, taken))
    assert platform.volume.state is VolumeState.RESTORING
    await platform.becomes(VolumeState.AVAILABLE)
    assert disks.kept[platform.volume_id].holds == "before"

    def destroy(unit: Unit) -> None:
        row = unit.tx.volumes.get(copy.id)
        assert row is not None
        volumes.delete_volume(unit, row)

    await platform.world.control.commit(destroy)
    await platform.clock.until(lambda: platform.world.peek(lambda tx: tx.volumes.get(copy.id)) is None)
    assert copy.id not in disks.kept
    await platform.change(lambda unit, row: volumes.delete_snapshot(unit, row, taken))
    await platform.clock.until(lambda: platform.world.peek(lambda tx: tx.snapshots.get(snapshot.id)) is None)


async def test_what_lived_on_a_node_that_is_removed_is_lost_and_its_app_says_so(platform: Platform) -> None:
    assert await platform.deploy("v1") is DeploymentState.SUCCEEDED
    home = platform.home
    await home.kill()
    row = platform.node(home.name)
    await platform.world.control.commit(lambda unit: nodeadmin.remove_node(unit, row, force=True))
    assert platform.volume.state is VolumeState.ERROR
    await platform.clock.until(lambda: platform.waiting().startswith("the volume data is lost: node "))


async def test_an_agent_that_dies_while_it_makes_a_volume_goes_on_where_it_was(platform: Platform) -> None:
    begun = await platform.begin("v1")
    await platform.clock.until(lambda: bool(platform.volume.node_id))
    home = platform.home
    await home.kill()
    home.start()
    assert (await platform.world.finished(begun)).state is DeploymentState.SUCCEEDED
    assert (platform.most_owners, len(home.alive())) == (1, 1)


async def test_one_whose_volumes_came_to_different_nodes_waits_and_says_so(platform: Platform) -> None:
    """As when one of them became its standby copy; the loop goes on with all others."""
    await platform.deploy("hello:v1")
    away = next(host for host in platform.hosts if host is not platform.home)

    def elsewhere(unit: Unit) -> Volume:
        made = volumes.create_volume(unit, _project(unit), volumes.VolumeWish(name="logs", size_bytes=GIB))
        return unit.tx.volumes.update(replace(made, node_id=platform.node(away.name).id))

    logs = await platform.world.control.commit(elsewhere)
    mounts = (
        Mount(source="data", destination="/data", volume_id=platform.volume_id),
        Mount(source="logs", destination="/logs", volume_id=logs.id),
    )
    await platform.world.deploy("hello:v2", mounts=mounts)
    await platform.clock.until(lambda: "data and logs came to different nodes" in platform.waiting(), 30)
