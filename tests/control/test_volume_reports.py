"""What is believed of what a node says of volumes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shellwego.control import quotas, volumes
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Unit
from shellwego.control.volumereports import lose_volumes
from shellwego.core.assignments import NodeReport, Registration, VolumeOrder
from shellwego.core.claims import MAX_INSTANCES
from shellwego.core.errors import ConflictError, InvalidError, QuotaError
from shellwego.core.volumes import (
    LOST,
    ObservedSnapshot,
    ObservedVolume,
    Presence,
    Snapshot,
    SnapshotState,
    Volume,
    VolumeState,
)
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.ports.store import Transaction
from tests.control.rollout_world import PRJ, World, node_facts

GIB = 1 << 30
THERE = ObservedVolume(presence=Presence.PRESENT, size_bytes=GIB)


class Reporter:
    """Two nodes by hand; the volume lives on the first."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes = Nodes(world.control, Sealer(world.control, MemoryKms()))
        self.ids: list[str] = []
        self.volume_id = ""
        self.sequence = 0

    async def begin(self) -> None:
        for name in ("one", "two"):
            self.ids.append((await self.nodes.register(Registration(name=name, facts=node_facts()))).node_id)

        def make(unit: Unit) -> str:
            project = unit.tx.projects.get(PRJ)
            assert project is not None
            made = volumes.create_volume(unit, project, volumes.VolumeWish(name="data", size_bytes=GIB))
            return unit.tx.volumes.update(replace(made, node_id=self.ids[0])).id

        self.volume_id = await self.world.control.commit(make)

    async def say(
        self, observed: ObservedVolume, *, node: int = 0, sequence: int | None = None, epoch: int = 1
    ) -> Volume:
        await self.report(observed, node=node, sequence=sequence, epoch=epoch)
        return self.volume

    async def report(
        self, observed: ObservedVolume, *, node: int = 0, sequence: int | None = None, epoch: int = 1
    ) -> None:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        report = NodeReport(
            node_id=self.ids[node],
            epoch=epoch,
            sequence=self.sequence,
            facts=node_facts(),
            volumes={self.volume_id: observed},
        )
        await self.nodes.report(report)

    @property
    def volume(self) -> Volume:
        return self.world.peek(self._volume)

    def _volume(self, tx: Transaction) -> Volume:
        found = tx.volumes.get(self.volume_id)
        assert found is not None
        return found

    async def snapshot(self) -> Snapshot:
        return await self.world.control.commit(lambda unit: volumes.take_snapshot(unit, self._volume(unit.tx)))

    async def order(self) -> VolumeOrder:
        (order,) = (await self.nodes.assignments(self.ids[0])).volumes
        return order

    def row(self, snapshot: Snapshot) -> Snapshot | None:
        return self.world.peek(lambda tx: tx.snapshots.get(snapshot.id))

    async def limit(self, storage: int) -> None:
        def work(unit: Unit) -> None:
            project = unit.tx.projects.get(PRJ)
            assert project is not None
            quotas.set_project_quota(unit, project, {"storage": storage})

        await self.world.control.commit(work)

    def stored(self) -> int:
        """What counts against the quota."""

        def work(tx: Transaction) -> int:
            project = tx.projects.get(PRJ)
            assert project is not None
            return quotas.used(tx, quotas.of_project(tx, project), ["storage"])["storage"]

        return self.world.peek(work)


@pytest.fixture
async def node() -> AsyncIterator[Reporter]:
    world = World()
    await world.begin(loops=False)
    reporter = Reporter(world)
    await reporter.begin()
    yield reporter
    await world.end()


async def test_what_its_node_saw_moves_it_on(node: Reporter) -> None:
    assert not (await node.order()).made
    assert (await node.say(THERE)).state is VolumeState.AVAILABLE
    assert (await node.order()).made
    assert (await node.say(ObservedVolume(reason="not here", reason_code="volume-missing"))).state is VolumeState.ERROR
    assert (await node.say(THERE)).state is VolumeState.AVAILABLE


async def test_another_node_and_an_older_report_say_nothing_of_it(node: Reporter) -> None:
    assert (await node.say(THERE, node=1)).observed == ObservedVolume()
    await node.say(THERE, sequence=7)
    for sequence in (7, 6):
        assert (await node.say(ObservedVolume(), sequence=sequence)).observed.presence is Presence.PRESENT


async def test_an_older_report_that_comes_late_is_not_believed_though_the_newer_one_said_nothing_new(
    node: Reporter,
) -> None:
    for sequence in (5, 7):
        await node.say(THERE, sequence=sequence)
    assert (await node.say(ObservedVolume(), sequence=6)).observed.presence is Presence.PRESENT


async def test_what_is_said_is_bounded_and_only_of_its_own_snapshots(node: Reporter) -> None:
    said = ObservedVolume(
        presence=Presence.PRESENT,
        size_bytes=-1,
        used_bytes=1 << 62,
        reason="x" * 10_000,
        reason_code=LOST,
        restored=99,
        snapshots={"snap_foreign": ObservedSnapshot(presence=Presence.PRESENT)},
    )
    seen = (await node.say(said)).observed
    assert (seen.size_bytes, len(seen.reason), seen.reason_code, seen.restored) == (0, 500, "", 0)
    assert seen.used_bytes < 1 << 62
    assert not seen.snapshots
    many = {f"vol_{number}": THERE for number in range(MAX_INSTANCES + 1)}
    with pytest.raises(InvalidError):
        await node.nodes.report(NodeReport(node_id=node.ids[0], epoch=1, sequence=99, facts=node_facts(), volumes=many))


async def test_a_snapshot_is_there_when_its_node_says_so_or_is_given_up(node: Reporter) -> None:
    await node.say(THERE)
    for presence, state in ((Presence.PRESENT, SnapshotState.AVAILABLE), (Presence.REFUSED, SnapshotState.ERROR)):
        snapshot = await node.snapshot()
        assert node.volume.state is VolumeState.SNAPSHOTTING
        said = {snapshot.id: ObservedSnapshot(presence=presence, reason="why")}
        assert (await node.say(replace(THERE, snapshots=said))).state is VolumeState.AVAILABLE
        row = node.row(snapshot)
        assert row is not None
        assert row.state is state


async def test_a_restore_ends_by_its_number_and_no_earlier(node: Reporter) -> None:
    await node.say(THERE)
    snapshot = await node.snapshot()
    there = replace(THERE, snapshots={snapshot.id: ObservedSnapshot(presence=Presence.PRESENT)})
    await node.say(there)
    for number in (1, 2):
        row = node.row(snapshot)
        assert row is not None
        await node.world.control.commit(lambda unit, row=row: volumes.restore_volume(unit, node._volume(unit.tx), row))
        assert (await node.order()).restore == number
        assert (await node.say(replace(there, restored=number - 1, used_bytes=number))).state is VolumeState.RESTORING
        assert (await node.say(replace(there, restored=number))).state is VolumeState.AVAILABLE


async def test_it_goes_only_when_its_node_says_that_it_is_gone(node: Reporter) -> None:
    await node.say(THERE)
    await node.world.control.commit(lambda unit: volumes.delete_volume(unit, node._volume(unit.tx)))
    assert not (await node.order()).present
    assert (await node.say(ObservedVolume())).state is VolumeState.DELETING
    with pytest.raises(ConflictError):
        await node.snapshot()
    await node.report(ObservedVolume(presence=Presence.GONE))
    assert node.world.peek(lambda tx: tx.volumes.select()) == []


async def test_a_node_that_registers_without_its_memory_is_heard_again(node: Reporter) -> None:
    await node.say(THERE, sequence=50)
    again = await node.nodes.register(Registration(name="one", facts=node_facts()))
    assert (await node.say(ObservedVolume(), sequence=51)).state is VolumeState.AVAILABLE
    assert (await node.say(ObservedVolume(reason="gone"), sequence=1, epoch=again.epoch)).state is VolumeState.ERROR


async def test_what_snapshots_take_counts_as_storage_and_bounds_the_next_one(node: Reporter) -> None:
    await node.limit(2 * GIB)
    await node.say(replace(THERE, used_bytes=GIB * 3 // 4))
    first = await node.snapshot()
    assert node.stored() == GIB * 7 // 4, "until it is told of: what the volume takes"
    told = {first.id: ObservedSnapshot(presence=Presence.PRESENT, used_bytes=GIB // 2)}
    await node.say(replace(THERE, used_bytes=GIB * 3 // 4, snapshots=told))
    assert node.stored() == GIB * 3 // 2
    with pytest.raises(QuotaError) as error:
        await node.snapshot()
    assert [(fault.field, fault.used) for fault in error.value.errors] == [("storage", GIB * 3 // 2)]
    await node.limit(3 * GIB)
    await node.snapshot()
    assert node.stored() == GIB * 9 // 4


async def test_a_snapshot_that_could_not_be_taken_counts_for_nothing(node: Reporter) -> None:
    await node.say(replace(THERE, used_bytes=GIB))
    failed = await node.snapshot()
    assert node.stored() == 2 * GIB
    told = {failed.id: ObservedSnapshot(presence=Presence.REFUSED, reason="the disk is full")}
    await node.say(replace(THERE, used_bytes=GIB, snapshots=told))
    assert node.stored() == GIB


async def test_snapshots_that_went_with_their_node_count_for_nothing(node: Reporter) -> None:
    await node.say(replace(THERE, used_bytes=GIB))
    kept = await node.snapshot()
    told = {kept.id: ObservedSnapshot(presence=Presence.PRESENT, used_bytes=GIB)}
    await node.say(replace(THERE, snapshots=told))

    def lose(unit: Unit) -> None:
        home = unit.tx.nodes.get(node.ids[0])
        assert home is not None
        lose_volumes(unit, home, "its node was removed")

    await node.world.control.commit(lose)
    assert node.stored() == GIB
