"""A volume that goes to another node with its app: one owner at every moment, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.agent.replicas import AT_ONCE
from shellwego.control import nodeadmin, scheduling, volumemoves, volumes
from shellwego.control.evictions import evict
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError, NotFoundError, UnavailableError
from shellwego.core.moves import MoveStage
from shellwego.core.replica_convergence import Load
from shellwego.core.replicas import marker
from shellwego.core.volumes import Presence, VolumeState
from shellwego.drivers.engine.memory_volumes import MemoryVolume
from tests.agent.move_world import Host
from tests.agent.volume_move_world import GIB, TEXT, VolumeHosts
from tests.control.rollout_world import PRJ


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[VolumeHosts]:
    made = VolumeHosts(tmp_path)
    await made.open("new")
    yield made
    await made.close()


async def test_a_volume_goes_to_another_node_and_its_app_follows(hosts: VolumeHosts) -> None:
    (before,) = hosts.edge.endpoints()
    await hosts.start_move()
    assert hosts.volume.state is VolumeState.MOVING
    await hosts.moved()
    assert hosts.holds(hosts.new) == TEXT
    (after,) = hosts.edge.endpoints()
    assert after != before
    assert (hosts.move.stage, hosts.volume.state) == (MoveStage.DONE, VolumeState.ATTACHED)
    assert hosts.move.stopped_s is not None
    assert 0 < hosts.move.stopped_s < 10
    [told] = hosts.told("volume.moved")
    assert (told["from"], told["to"]) == (hosts.old.id, hosts.new.id)
    assert float(told["stopped_s"]) > 0


async def test_what_the_app_writes_meanwhile_goes_along_to_the_last_byte(hosts: VolumeHosts) -> None:
    await hosts.start_move()
    number = 0
    while any(view.vm_id for view in hosts.old.engine.disks.views()):
        number += 1
        hosts.write(hosts.old, f"{TEXT}{number}")
        await hosts.clock.advance(0.005)
    await hosts.moved()
    assert hosts.holds(hosts.new) == f"{TEXT}{number}"


async def test_each_round_is_what_differs_from_the_one_before(hosts: VolumeHosts) -> None:
    await hosts.start_move()
    await hosts.moved()
    (first, whole), *others = hosts.road.asked
    assert whole == ""
    assert [since for _, since in others] == [first, *(snapshot for snapshot, _ in others[:-1])]


async def test_its_snapshots_go_along_the_oldest_first(hosts: VolumeHosts) -> None:
    taken = [await hosts.snapshot(text) for text in ("one", "two")]
    hosts.write(hosts.old, "three")
    await hosts.start_move()
    await hosts.clock.until(lambda: not hosts.move.active, 600)
    await hosts.clock.advance(5)
    kept = hosts.new.engine.disks.kept[hosts.volume_id]
    assert (kept.holds, kept.snapshots) == ("three", dict(zip(taken, ("one", "two"), strict=True)))
    assert hosts.holds(hosts.old) is None


async def test_of_the_beginning_of_another_copy_that_was_left_there_only_what_the_volume_still_has_is_built_upon(
    hosts: VolumeHosts,
) -> None:
    taken = await hosts.snapshot("one")
    hosts.write(hosts.old, "two")
    left = {"snap_" + "0" * 26: "none", taken: "one", "snap_" + "1" * 26: "one and a half"}
    hosts.new.engine.disks.kept[hosts.volume_id] = MemoryVolume(GIB, holds="one and a half", snapshots=left)
    await hosts.start_move()
    await hosts.clock.until(lambda: not hosts.move.active, 600)
    await hosts.clock.advance(5)
    kept = hosts.new.engine.disks.kept[hosts.volume_id]
    assert hosts.volume.node_id == hosts.new.id
    assert (kept.holds, kept.snapshots) == ("two", {taken: "one"})
    assert hosts.holds(hosts.old) is None


async def test_of_an_encrypted_one_ciphertext_goes_and_the_key_comes_from_the_control_plane(tmp_path: Path) -> None:
    made = VolumeHosts(tmp_path)
    await made.open("new", encrypted=True)
    try:
        await made.start_move()
        await made.clock.until(lambda: made.holds(made.new) is not None, 60)
        assert made.new.engine.disks.kept[made.volume_id].key is None
        await made.moved()
        kept = made.new.engine.disks.kept[made.volume_id]
        assert (kept.holds, kept.key) == (TEXT, made.old_key)
    finally:
        await made.close()


# What goes wrong


async def test_a_piece_that_is_damaged_on_its_way_is_named_and_the_round_sent_again(hosts: VolumeHosts) -> None:
    damaged: list[int] = []

    def damage(number: int, piece: bytes) -> bytes:
        if number == 1 and not damaged:
            damaged.append(number)
            return piece[:-1] + b"!"
        return piece

    hosts.road.on_piece = damage
    await hosts.start_move()
    await hosts.clock.until(lambda: "not what was sent" in hosts.move.reason, 60)
    await hosts.moved()
    assert (damaged, hosts.holds(hosts.new)) == ([1], TEXT)


async def test_a_marker_that_is_taken_for_longer_than_anybody_waits_is_there_when_he_comes_back(
    hosts: VolumeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, begun = hosts.old.engine, list[str]()
    at_once = engine.snapshot_volume

    async def copied(volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        """As where a snapshot is a full copy; who cancels it leaves none."""
        begun.append(snapshot_id)
        await hosts.clock.sleep(50)
        await at_once(volume_id, snapshot_id, freeze=freeze)

    monkeypatch.setattr(engine, "snapshot_volume", copied)
    hosts.road.patience_s = 20
    await hosts.start_move()
    await hosts.moved()
    assert len(begun) == len(set(begun)) < len(hosts.road.asked)
    assert hosts.holds(hosts.new) == TEXT


async def test_an_agent_that_ends_lets_go_of_the_marker_that_it_takes(
    hosts: VolumeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[str] = []

    async def copied(volume_id: str, snapshot_id: str, *, freeze: bool) -> None:
        under_way.append(snapshot_id)
        try:
            await hosts.clock.sleep(3600)
        finally:
            under_way.remove(snapshot_id)

    with monkeypatch.context() as patched:
        patched.setattr(hosts.old.engine, "snapshot_volume", copied)
        await hosts.start_move()
        await hosts.clock.until(lambda: len(under_way) == 1, 60)
        await hosts.old.kill()
        assert under_way == []
    hosts.old.start()
    await hosts.moved()


async def test_a_later_round_that_does_not_go_with_what_is_there_begins_anew(hosts: VolumeHosts) -> None:
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.STOPPING, 60)
    kept = hosts.new.engine.disks.kept[hosts.volume_id]
    kept.snapshots = dict.fromkeys(kept.snapshots, "something else")
    await hosts.moved()
    assert [since for _, since in hosts.road.asked].count("") == 2
    assert hosts.holds(hosts.new) == TEXT


async def test_an_uncordon_that_lets_stay_whoever_was_to_leave_the_volume_does_not_hold_up_its_move(
    hosts: VolumeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def evict_and_open(unit: Unit, *told: object) -> None:
        evict(unit, *told)  # type: ignore[arg-type]
        if not opened:
            opened.append(scheduling.uncordon(unit, hosts.row(hosts.old)))

    monkeypatch.setattr(volumemoves, "evict", evict_and_open)
    await hosts.cordon(hosts.old)
    await hosts.start_move()
    await hosts.moved()
    assert opened


async def test_an_agent_that_dies_while_it_removes_what_does_not_go_with_the_rest_leaves_no_stranger(
    hosts: VolumeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.STOPPING, 60)
    kept = hosts.new.engine.disks.kept[hosts.volume_id]
    kept.snapshots = dict.fromkeys(kept.snapshots, "something else")
    removing = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        removing.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(hosts.new.engine, "delete_volume", never)
        await hosts.clock.until(removing.is_set, 60)
        await hosts.new.kill()
    hosts.new.start()
    await hosts.moved()
    assert hosts.holds(hosts.new) == TEXT


async def test_where_there_is_no_room_it_waits_and_says_so_and_can_be_given_up(hosts: VolumeHosts) -> None:
    hosts.new.engine.disks.fails_with = UnavailableError("no-room", "the host has no room for so large a volume")
    await hosts.start_move()
    await hosts.clock.until(lambda: "no room" in hosts.move.reason, 60)
    await hosts.world.control.commit(lambda unit: volumemoves.cancel_move(unit, hosts.volume))
    assert (hosts.move.stage, hosts.volume.state) == (MoveStage.CANCELLED, VolumeState.ATTACHED)
    hosts.new.engine.disks.fails_with = None
    await hosts.stays()


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05, 0.1, 0.2])
async def test_one_that_is_given_up_on_its_way_stays_where_it_is_and_leaves_nothing(
    hosts: VolumeHosts, moment: float
) -> None:
    await hosts.start_move()
    await hosts.clock.advance(moment)
    with suppress(ConflictError):
        await hosts.world.control.commit(lambda unit: volumemoves.cancel_move(unit, hosts.volume))
        await hosts.stays()
        return
    await hosts.moved()


async def test_a_node_that_dies_before_the_last_round_lets_the_app_go_on_where_it_was(hosts: VolumeHosts) -> None:
    hosts.road.stalls = lambda: hosts.move.stage is MoveStage.LAST
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.LAST, 60)
    await hosts.new.kill()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.COPYING, 300)
    await hosts.clock.until(lambda: len(hosts.edge.endpoints()) == 1, 120)
    assert "does not answer" in hosts.told("volume.move.delayed")[0]["reason"]
    hosts.write(hosts.old, "more")
    hosts.road.stalls = lambda: False
    hosts.new.start()
    await hosts.moved()
    assert hosts.holds(hosts.new) == "more"


async def test_a_node_that_is_removed_on_the_way_ends_the_move_and_the_app_goes_on(hosts: VolumeHosts) -> None:
    hosts.road.stalls = lambda: hosts.move.stage is MoveStage.LAST
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.LAST, 60)
    await hosts.new.kill()
    target = hosts.row(hosts.new)
    await hosts.world.control.commit(lambda unit: nodeadmin.remove_node(unit, target, force=True))
    await hosts.clock.until(lambda: not hosts.move.active, 60)
    assert (hosts.move.stage, hosts.volume.node_id) == (MoveStage.FAILED, hosts.old.id)
    await hosts.clock.until(lambda: len(hosts.edge.endpoints()) == 1 and not hosts.kept, 120)
    assert "removed" in hosts.told("volume.move.failed")[0]["reason"]


async def test_an_old_node_that_is_removed_before_the_new_one_spoke_does_not_keep_the_move_from_its_end(
    hosts: VolumeHosts,
) -> None:
    hosts.road.stalls = lambda: hosts.move.stage is MoveStage.LAST
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.LAST, 60)
    hosts.road.stalls = lambda: False
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.ARRIVING, 60)
    await hosts.new.kill()
    await hosts.old.kill()
    source = hosts.row(hosts.old)
    await hosts.world.control.commit(lambda unit: nodeadmin.remove_node(unit, source, force=True))
    hosts.new.start()
    await hosts.clock.until(lambda: not hosts.move.active, 300)
    assert (hosts.move.stage, hosts.volume.node_id, hosts.kept) == (MoveStage.DONE, hosts.new.id, [])


async def test_a_node_that_is_removed_before_the_app_is_back_leaves_no_copy_to_be_waited_for(
    hosts: VolumeHosts,
) -> None:
    hosts.new.engine.boots_fail_with = "the kernel did not boot"
    await hosts.start_move()
    await hosts.clock.until(lambda: [each.observed.presence for each in hosts.kept] == [Presence.GONE], 60)
    assert hosts.move.stage is MoveStage.CLEARING
    target = hosts.row(hosts.new)
    await hosts.world.control.commit(lambda unit: nodeadmin.remove_node(unit, target, force=True))
    assert hosts.volume.lost
    assert not hosts.kept


async def test_a_node_that_dies_for_good_before_it_told_of_the_volume_takes_nothing_along(hosts: VolumeHosts) -> None:
    taken = await hosts.snapshot("one")
    hosts.write(hosts.old, "two")
    await hosts.dies_after_the_switch()
    error = await hosts.refused(lambda unit: nodeadmin.remove_node(unit, hosts.row(hosts.new)))
    assert (error.code, "1 did not arrive" in error.message) == ("node-has-volumes", True)
    await hosts.remove(hosts.new)
    assert (hosts.move.stage, hosts.volume.node_id, hosts.kept) == (MoveStage.FAILED, hosts.old.id, [])
    assert not hosts.volume.lost
    assert "had taken it over" in hosts.told("volume.move.failed")[0]["reason"]
    await hosts.is_back()
    kept = hosts.old.engine.disks.kept[hosts.volume_id]
    assert (kept.holds, kept.snapshots) == ("two", {taken: "one"})
    assert (hosts.told("volume.lost"), hosts.told("volume.restored")) == ([], [])
    await hosts.start_move(await hosts.join("third"))
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.DONE, 600)


async def test_so_it_is_with_one_that_is_encrypted(tmp_path: Path) -> None:
    made = VolumeHosts(tmp_path)
    await made.open("new", encrypted=True)
    try:
        await made.dies_after_the_switch()
        made.old.engine.disks.lock()
        await made.remove(made.new)
        await made.is_back()
        assert made.holds(made.old) == TEXT
    finally:
        await made.close()


async def test_where_its_old_node_was_halfway_making_the_copy_again_what_it_was_it_is_whole_before_anybody_has_it(
    hosts: VolumeHosts,
) -> None:
    await hosts.dies_after_the_switch()
    await hosts.old.kill()
    hosts.write(hosts.old, TEXT[:100])
    await hosts.remove(hosts.new)
    assert hosts.volume.state is VolumeState.RESTORING
    hosts.old.start()
    await hosts.is_back()
    assert hosts.holds(hosts.old) == TEXT


async def test_one_whose_old_node_has_no_copy_any_more_is_lost(hosts: VolumeHosts) -> None:
    await hosts.dies_after_the_switch()
    hosts.old.engine.disks.kept.clear()
    await hosts.clock.until(lambda: [each.observed.presence for each in hosts.kept] == [Presence.ABSENT], 60)
    await hosts.remove(hosts.new)
    assert hosts.volume.lost
    await hosts.clock.until(lambda: not hosts.kept, 60)


async def test_a_node_that_answers_is_not_removed_while_a_volume_arrives_there(hosts: VolumeHosts) -> None:
    """A VM there may have the volume already, and would beside the one that begins where it came from."""
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.ARRIVING, 60)
    error = await hosts.refused(lambda unit: nodeadmin.remove_node(unit, hosts.row(hosts.new), force=True))
    assert error.code == "node-takes-volumes-over"
    await hosts.moved()


async def test_what_a_node_has_under_its_id_and_nobody_knows_ends_the_move_and_is_left_alone(
    hosts: VolumeHosts,
) -> None:
    await hosts.new.engine.create_volume(hosts.volume_id, GIB)
    hosts.write(hosts.new, "of another time")
    await hosts.start_move()
    await hosts.clock.until(lambda: not hosts.move.active, 60)
    assert (hosts.move.stage, hosts.volume.node_id) == (MoveStage.FAILED, hosts.old.id)
    assert "left alone" in hosts.told("volume.move.failed")[0]["reason"]
    await hosts.clock.advance(10)
    assert (hosts.holds(hosts.new), hosts.kept) == ("of another time", [])
    assert len(hosts.edge.endpoints()) == 1


async def test_the_last_round_is_not_sent_while_somebody_may_have_the_volume(hosts: VolumeHosts) -> None:
    """The source's agent sees to that by itself: what the server believes of it may be old."""
    hosts.road.stalls = lambda: hosts.move.stage is MoveStage.LAST
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.LAST, 60)
    view = hosts.old.engine.disks.views
    held = [replace(each, vm_id="vm_forgotten") for each in view()]
    hosts.old.engine.disks.views = lambda: tuple(held)  # type: ignore[method-assign]
    hosts.road.stalls = lambda: False
    await hosts.clock.until(lambda: "may have it" in hosts.move.reason, 60)
    assert hosts.volume.node_id == hosts.old.id
    hosts.old.engine.disks.views = view  # type: ignore[method-assign]
    await hosts.moved()


# Beside the copies of other volumes


async def test_the_last_round_waits_for_no_whole_copy_while_the_app_is_stopped(hosts: VolumeHosts) -> None:
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.STOPPING, 60)
    await hosts.copy_slowly("one", "two", "three")
    await hosts.clock.until(lambda: not hosts.move.active, 60)
    assert (hosts.move.stage, hosts.move.stops) == (MoveStage.DONE, 1)
    assert hosts.holds(hosts.new) == TEXT


async def test_of_whole_copies_no_more_than_two_are_brought_up_at_once(hosts: VolumeHosts) -> None:
    await hosts.copy_slowly("one", "two", "three")
    await hosts.clock.advance(30)
    assert len(hosts.road.asked) == AT_ONCE[Load.COPY] == 2
    first = hosts.road.asked[0][0].split("_")[1]
    hosts.road.stalled.remove(f"rep_{first}")
    await hosts.clock.until(lambda: [since for _, since in hosts.road.asked].count("") == 3, 60)


async def test_a_copy_that_is_to_go_waits_for_none_that_comes(hosts: VolumeHosts) -> None:
    hosts.road.stalls = lambda: hosts.move.rounds > 1
    await hosts.start_move()
    await hosts.clock.until(lambda: hosts.move.stage is MoveStage.STOPPING, 60)
    await hosts.copy_slowly("one", "two", "three")
    await hosts.world.control.commit(lambda unit: volumemoves.cancel_move(unit, hosts.volume))
    await hosts.clock.until(lambda: hosts.holds(hosts.new) is None, 10)


# Crashes


Crash = Callable[[VolumeHosts], Awaitable[None]]


async def _old_agent(hosts: VolumeHosts) -> None:
    await hosts.old.kill()
    await hosts.clock.advance(0.5)
    hosts.old.start()


async def _new_agent(hosts: VolumeHosts) -> None:
    await hosts.new.kill()
    await hosts.clock.advance(0.5)
    hosts.new.start()


async def _server(hosts: VolumeHosts) -> None:
    await hosts.world.restart_loops()
    await hosts.streams.cut(hosts.old.id)


async def _link(hosts: VolumeHosts) -> None:
    await hosts.streams.cut(hosts.old.id)


MOMENTS = [0.0, 0.05, 0.2]
MORE = [pytest.param(moment, marks=pytest.mark.nightly) for moment in (0.01, 0.02, 0.03, 0.1, 0.15, 0.3, 0.5, 1.0)]


@pytest.mark.parametrize("moment", [*MOMENTS, *MORE])
@pytest.mark.parametrize("crash", [_old_agent, _new_agent, _server, _link])
async def test_whoever_dies_at_whatever_step_the_volume_arrives_whole_and_nothing_is_left(
    hosts: VolumeHosts, crash: Crash, moment: float
) -> None:
    await hosts.start_move()
    await hosts.clock.advance(moment)
    await crash(hosts)
    await hosts.moved()
    assert hosts.holds(hosts.new) == TEXT


async def test_a_server_that_is_started_anew_after_each_step_goes_on_where_the_last_one_was(hosts: VolumeHosts) -> None:
    await hosts.start_move()
    stages = {hosts.move.stage}
    while hosts.move.active:
        await hosts.world.restart_loops()
        await hosts.clock.advance(0.01)
        stages.add(hosts.move.stage)
    await hosts.moved()
    assert {MoveStage.STOPPING, MoveStage.DONE} <= stages
    assert hosts.holds(hosts.new) == TEXT


# Who may have it


async def test_only_the_node_that_keeps_the_copy_gets_what_is_wanted_of_it_and_a_whole_one_is_audited(
    hosts: VolumeHosts,
) -> None:
    await hosts.new.kill()
    await hosts.start_move()
    (replica,) = hosts.kept
    wanted = marker(replica.id, 1)
    for node_id, replica_id, snapshot_id, since in (
        (hosts.old.id, replica.id, wanted, ""),
        (hosts.new.id, "rep_none", wanted, ""),
        (hosts.new.id, replica.id, marker(replica.id, 2), ""),
        (hosts.new.id, replica.id, "snap_none", ""),
        (hosts.new.id, replica.id, wanted, "snap_none"),
    ):
        with pytest.raises(NotFoundError):
            await hosts.clock.run(fetch(hosts, node_id, replica_id, snapshot_id, since))
    assert not hosts.world.peek(lambda tx: tx.audit.select())
    await hosts.clock.run(fetch(hosts, hosts.new.id, replica.id, wanted, ""))
    [record] = hosts.world.peek(lambda tx: tx.audit.select())
    assert (record.actor, record.action, record.resource) == (hosts.new.id, "volumes:replicate", hosts.volume_id)


async def fetch(hosts: VolumeHosts, node_id: str, replica_id: str, snapshot_id: str, since: str) -> bytes:
    async with aclosing(hosts.road.replica(node_id, replica_id, snapshot_id, since)) as pieces:
        return b"".join([piece async for piece in pieces])


# What is refused


async def test_what_cannot_be_moved_is_refused_in_words(hosts: VolumeHosts) -> None:
    async def refused(host: Host) -> tuple[str, str]:
        error = await hosts.refused(lambda unit: hosts.ask_move(unit, host))
        return error.code, error.message

    assert await refused(hosts.old) == ("already-there", "the volume data is on the node old already")
    await hosts.cordon(hosts.new)
    assert await refused(hosts.new) == ("cannot-be-moved", "node: the node new is cordoned")
    await hosts.uncordon(hosts.new)
    await hosts.offer(hosts.new, memory_bytes=1 << 20)
    code, text = await refused(hosts.new)
    assert code == "cannot-be-moved"
    assert "lacks memory (need 256 MiB, best has 1 MiB)" in text
    await hosts.offer(hosts.new, memory_bytes=64 << 30, disk_bytes=1 << 20)
    assert "has room for 1 MiB, and the volume has 1024" in (await refused(hosts.new))[1]
    await hosts.offer(hosts.new, disk_bytes=1 << 40, replicas=False)
    assert "takes no part in moves" in (await refused(hosts.new))[1]
    assert (hosts.volume.move, hosts.kept) == (None, [])


async def test_while_it_moves_nothing_else_is_done_to_it(hosts: VolumeHosts) -> None:
    taken = await hosts.snapshot("one")
    await hosts.start_move()
    snapshot = hosts.world.peek(lambda tx: tx.snapshots.get(taken))
    project = hosts.world.peek(lambda tx: tx.projects.get(PRJ))
    assert snapshot is not None
    assert project is not None
    wish = volumes.VolumeWish(name="copy", snapshot_id=taken)
    for work in (
        lambda unit: hosts.ask_move(unit, hosts.new),
        lambda unit: volumes.take_snapshot(unit, hosts.volume),
        lambda unit: volumes.restore_volume(unit, hosts.volume, snapshot),
        lambda unit: volumes.delete_snapshot(unit, hosts.volume, snapshot),
        lambda unit: volumes.resize_volume(unit, project, hosts.volume, 2 * GIB),
        lambda unit: volumes.create_volume(unit, project, wish),
    ):
        assert (await hosts.refused(work)).code == "volume-busy"


async def test_one_whose_snapshots_others_began_with_stays(hosts: VolumeHosts) -> None:
    taken = await hosts.snapshot("one")
    project = hosts.world.peek(lambda tx: tx.projects.get(PRJ))
    assert project is not None
    wish = volumes.VolumeWish(name="copy", snapshot_id=taken)
    await hosts.world.control.commit(lambda unit: volumes.create_volume(unit, project, wish))
    error = await hosts.refused(lambda unit: hosts.ask_move(unit, hosts.new))
    assert (error.code, "copy" in error.message) == ("volume-has-clones", True)
