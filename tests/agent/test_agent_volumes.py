"""Volumes on a node: made before the VMs that need them, given to one at a time, and never destroyed by silence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.core.assignments import SnapshotOrder, VolumeOrder, WorkloadMount
from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.core.vms import VmPhase
from shellwego.core.volumes import ObservedVolume, Presence
from tests.agent.agent_world import World, workload, world

GIB = 1 << 30
VOLUME = VolumeOrder(volume_id="vol_1", size_bytes=GIB)
WORK = workload("serve", mounts=(WorkloadMount(volume_id="vol_1", name="data", destination="/data"),))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


def seen(node: World) -> ObservedVolume:
    return node.control.seen.get("vol_1", ObservedVolume())


async def made(node: World, **changes: object) -> None:
    """The volume, as the control plane wants it once it was seen."""
    await node.control.order(VOLUME)
    await node.clock.until(lambda: seen(node).presence is Presence.PRESENT)
    await node.control.order(replace(VOLUME, made=True, **changes))  # type: ignore[arg-type]


class TestBeforeItsVm:
    async def test_a_volume_is_made_and_then_its_vm_begins(self, node: World) -> None:
        await node.control.order(VOLUME)
        await node.control.assign("ins_1", WORK)
        await node.clock.until(node.control.is_("healthy"))
        (view,) = await node.engine.volumes()
        assert (view.volume_id, view.size_bytes, view.vm_id) == ("vol_1", GIB, await node.vm_id())

    async def test_while_it_cannot_be_made_its_vm_waits_and_says_why(self, node: World) -> None:
        node.engine.disks.fails_with = UnavailableError("no-room", "the disk is full")
        await node.control.order(VOLUME)
        await node.control.assign("ins_1", WORK)
        await node.clock.advance(60)
        told = node.control.observed["ins_1"]
        assert (told.phase.value, told.detail, told.ends) == ("starting", "volumes", 0)
        assert told.reason == "the volume data is not made yet"
        assert (seen(node).reason, seen(node).reason_code) == ("the disk is full", "no-room")
        node.engine.disks.fails_with = None
        await node.clock.until(node.control.is_("healthy"))
        assert await node.vms() == {"ins_1": (1, "running")}
        await node.clock.until(lambda: not seen(node).reason)

    async def test_what_was_there_and_is_missing_is_told_as_lost_and_not_made_anew(self, node: World) -> None:
        await node.control.order(replace(VOLUME, made=True))
        await node.control.assign("ins_1", WORK)
        await node.clock.advance(60)
        assert (seen(node).presence, seen(node).reason_code) == (Presence.ABSENT, "volume-missing")
        assert node.control.phase("ins_1") == "starting"
        assert await node.engine.volumes() == ()

    async def test_one_that_is_being_restored_lets_no_vm_begin(self, node: World) -> None:
        await made(node)
        await node.control.order(replace(VOLUME, made=True, restore_snapshot_id="snap_1", restore=1))
        node.engine.disks.fails_with = UnavailableError("busy", "later")
        await node.control.assign("ins_1", WORK)
        await node.clock.advance(10)
        assert node.control.observed["ins_1"].reason == "the volume data is being restored"


class TestEncrypted:
    ORDER = replace(VOLUME, encrypted=True)
    KEY = Sensitive(b"k" * 32)

    async def test_it_is_made_with_its_key_and_opened_again_by_an_engine_that_starts(self, node: World) -> None:
        node.control.keys["vol_1"] = self.KEY
        await node.control.order(self.ORDER)
        await node.control.assign("ins_1", WORK)
        await node.clock.until(node.control.is_("healthy"))
        assert (node.engine.disks.kept["vol_1"].key, node.control.handed) == (self.KEY, 1)
        await node.kill()
        node.start()
        await node.clock.until(lambda: node.control.handed == 2)
        await node.clock.advance(60)
        assert (node.control.handed, node.control.phase("ins_1")) == (2, "healthy")
        node.engine.die(await node.vm_id())
        await node.clock.advance(5)
        assert await node.vms() == {"ins_1": (2, "running")}

    async def test_without_its_key_nothing_is_made_and_what_mounts_it_waits(self, node: World) -> None:
        node.control.refusal = UnavailableError("kms-unavailable", "the KMS does not answer")
        await node.control.order(self.ORDER)
        await node.clock.advance(60)
        assert (await node.engine.volumes(), seen(node).reason) == ((), "the KMS does not answer")
        node.control.refusal, node.control.keys["vol_1"] = None, self.KEY
        await node.clock.until(lambda: seen(node).presence is Presence.PRESENT)

    async def test_while_it_is_locked_no_vm_of_it_begins_and_the_reason_says_why(self, node: World) -> None:
        node.control.keys["vol_1"] = self.KEY
        await node.control.order(self.ORDER)
        await node.clock.until(lambda: seen(node).presence is Presence.PRESENT)
        await node.kill()
        node.control.refusal = UnavailableError("kms-unavailable", "the KMS does not answer")
        node.start()
        await node.control.assign("ins_1", WORK)
        await node.clock.advance(60)
        told = node.control.observed["ins_1"]
        assert (told.phase.value, told.detail, told.ends) == ("starting", "volumes", 0)
        assert told.reason == "the volume data is locked: the KMS does not answer"
        node.control.refusal = None
        await node.clock.until(node.control.is_("healthy"))

    async def test_a_key_that_is_anothers_opens_nothing(self, node: World) -> None:
        node.control.keys["vol_1"] = self.KEY
        await node.control.order(self.ORDER)
        await node.clock.until(lambda: seen(node).presence is Presence.PRESENT)
        await node.kill()
        node.control.keys["vol_1"] = Sensitive(b"o" * 32)
        node.start()
        await node.clock.until(lambda: seen(node).reason_code == "wrong-key")

    async def test_a_copy_is_opened_by_its_own_key(self, node: World) -> None:
        node.control.keys["vol_1"] = self.KEY
        await node.control.order(replace(self.ORDER, snapshots=(SnapshotOrder(snapshot_id="snap_1"),)))
        await node.clock.until(lambda: "snap_1" in seen(node).snapshots)
        node.control.keys["vol_2"] = self.KEY
        await node.control.order(
            VolumeOrder(volume_id="vol_2", size_bytes=GIB, source_snapshot_id="snap_1", encrypted=True)
        )
        await node.clock.until(lambda: node.control.handed == 2)
        views = {view.volume_id: view for view in await node.engine.volumes()}
        assert (views["vol_2"].encrypted, views["vol_2"].locked) == (True, False)

    async def test_one_that_its_node_keeps_in_clear_is_told_and_given_to_nobody(self, node: World) -> None:
        await node.engine.create_volume("vol_1", GIB)
        await node.control.order(self.ORDER)
        await node.control.assign("ins_1", WORK)
        await node.clock.until(lambda: seen(node).reason_code == "volume-in-clear")
        await node.clock.advance(10)
        assert node.control.phase("ins_1") == "starting"


class TestOneOwner:
    async def test_an_instance_waits_until_the_vm_of_another_has_ended(self, node: World) -> None:
        """As when a node comes back with an instance that was judged lost meanwhile."""
        await made(node)
        await node.control.assign("ins_1", WORK)
        await node.clock.until(node.control.is_("healthy"))
        del node.control.items["ins_1"]
        await node.control.assign("ins_2", WORK)
        owners = set()
        for _ in range(100):
            owners.add(len([vm for vm in await node.engine.observe() if vm.phase is not VmPhase.ENDED]))
            await node.clock.advance(0.05)
        assert node.control.phase("ins_2") == "healthy"
        assert max(owners) == 1

    async def test_the_next_attempt_of_the_same_instance_has_it(self, node: World) -> None:
        await made(node)
        await node.control.assign("ins_1", WORK)
        await node.clock.until(node.control.is_("healthy"))
        node.engine.disks.kept["vol_1"].holds = "written"
        node.engine.die(await node.vm_id())
        await node.clock.advance(5)
        assert await node.vms() == {"ins_1": (2, "running")}
        assert node.engine.disks.kept["vol_1"].holds == "written"


class TestChanges:
    async def test_it_grows_while_a_vm_has_it(self, node: World) -> None:
        await made(node)
        await node.control.assign("ins_1", WORK)
        await node.clock.until(node.control.is_("healthy"))
        await node.control.order(replace(VOLUME, made=True, size_bytes=2 * GIB))
        await node.clock.until(lambda: seen(node).size_bytes == 2 * GIB)
        assert node.control.phase("ins_1") == "healthy"

    async def test_a_snapshot_is_taken_once_and_restored_once(self, node: World) -> None:
        await made(node)
        disk = node.engine.disks.kept["vol_1"]
        disk.holds = "before"
        order = replace(VOLUME, made=True, snapshots=(SnapshotOrder(snapshot_id="snap_1"),))
        await node.control.order(order)
        await node.clock.until(lambda: "snap_1" in seen(node).snapshots and bool(disk.snapshots))
        disk.holds = "after"
        kept = SnapshotOrder(snapshot_id="snap_1", made=True)
        await node.control.order(replace(order, snapshots=(kept,), restore_snapshot_id="snap_1", restore=1))
        await node.clock.until(lambda: seen(node).restored == 1)
        assert disk.holds == "before"
        disk.holds = "written since"
        await node.clock.advance(30)
        assert disk.holds == "written since"
        await node.control.order(replace(order, snapshots=(replace(kept, present=False),)))
        await node.clock.until(lambda: seen(node).snapshots["snap_1"].presence is Presence.GONE)
        assert not disk.snapshots

    async def test_a_snapshot_that_can_never_be_is_given_up(self, node: World) -> None:
        await made(node)
        node.engine.disks.fails_with = InvalidError("freeze-unsupported", "the guest cannot freeze")
        await node.control.order(replace(VOLUME, made=True, snapshots=(SnapshotOrder(snapshot_id="snap_1"),)))
        await node.clock.until(lambda: "snap_1" in seen(node).snapshots)
        await node.clock.until(lambda: seen(node).snapshots["snap_1"].presence is Presence.REFUSED)
        assert seen(node).snapshots["snap_1"].reason == "the guest cannot freeze"
        assert (seen(node).presence, seen(node).reason) == (Presence.PRESENT, "")

    async def test_a_copy_begins_with_what_the_snapshot_holds(self, node: World) -> None:
        await made(node)
        node.engine.disks.kept["vol_1"].holds = "before"
        await node.control.order(replace(VOLUME, made=True, snapshots=(SnapshotOrder(snapshot_id="snap_1"),)))
        await node.control.order(VolumeOrder(volume_id="vol_2", size_bytes=2 * GIB, source_snapshot_id="snap_1"))
        await node.clock.until(lambda: "vol_2" in node.engine.disks.kept)
        copy = node.engine.disks.kept["vol_2"]
        assert (copy.holds, copy.size_bytes) == ("before", 2 * GIB)


class TestItsEnd:
    async def test_one_that_is_to_go_is_told_as_gone(self, node: World) -> None:
        await made(node)
        await node.control.order(replace(VOLUME, made=True, present=False))
        await node.clock.until(lambda: seen(node).presence is Presence.GONE)
        assert await node.engine.volumes() == ()

    async def test_one_that_a_vm_has_stays_until_that_has_ended(self, node: World) -> None:
        await made(node)
        await node.control.assign("ins_1", WORK)
        await node.clock.until(node.control.is_("healthy"))
        await node.control.order(replace(VOLUME, made=True, present=False))
        await node.clock.advance(10)
        assert len(await node.engine.volumes()) == 1
        await node.control.assign("ins_1", present=False)
        await node.clock.until(lambda: seen(node).presence is Presence.GONE)

    async def test_what_no_order_names_is_left_alone(self, node: World) -> None:
        await made(node)
        node.control.volumes.clear()
        await node.control.hint()
        await node.clock.advance(60)
        assert len(await node.engine.volumes()) == 1


async def test_a_restarted_agent_adopts_what_is_there(node: World) -> None:
    await made(node)
    await node.control.assign("ins_1", WORK)
    await node.clock.until(node.control.is_("healthy"))
    vm_id = await node.vm_id()
    await node.kill()
    node.control.seen.clear()
    node.start()
    await node.clock.until(lambda: seen(node).presence is Presence.PRESENT)
    await node.clock.advance(10)
    assert (await node.vm_id(), node.control.phase("ins_1")) == (vm_id, "healthy")
