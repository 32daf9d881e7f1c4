"""Backups on real agents and loops: taken, broken off, gone on with, made into volumes, checked, kept and cleared away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.control import backups
from shellwego.control.loops.backups import PAGE
from shellwego.control.unit import Unit
from shellwego.core.backups import DAY_S, MAX_BACKUPS, RETRY_S, BackupAccessRequest, BackupState
from shellwego.core.errors import ConflictError, NotFoundError, UnavailableError
from shellwego.core.nodes import NodeHealth
from shellwego.core.volumes import VolumeState
from shellwego.drivers.uplink.memory import LinkState
from shellwego.ports.store import eq
from shellwego.wire import subjects
from tests.agent.backup_world import AWAY, PASSWORD, Platform


async def test_a_backup_is_made_into_a_volume_on_another_node(platform: Platform) -> None:
    id_ = await platform.backed_up("precious")
    taken = platform.backup(id_)
    assert (taken.parent_id, taken.node_id) == ("", platform.node("one").id)
    assert taken.stored_bytes > 0
    platform.write("scribbled over")
    again = await platform.restored(id_)
    assert again.node_id == ""
    await platform.place(again, "two")
    await platform.settles("again", VolumeState.AVAILABLE)
    made = platform.hosts[1].engine.disks.kept[again.id]
    assert (made.holds, made.size_bytes) == ("precious", platform.volume().size_bytes)


@pytest.mark.usefixtures("no_threads")
async def test_a_backup_of_an_encrypted_volume_is_made_into_one_with_the_same_key(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    platform.encrypted = True
    await platform.open()
    try:
        id_ = await platform.backed_up("precious")
        again = await platform.restored(id_)
        assert again.encrypted
        assert again.sealed_key != platform.volume().sealed_key, "it is sealed for this volume alone"
        await platform.place(again, "two")
        await platform.settles("again", VolumeState.AVAILABLE)
        source, made = (
            platform.hosts[at].engine.disks.kept[each.id] for at, each in enumerate((platform.volume(), again))
        )
        assert (made.holds, made.size_bytes, made.key) == ("precious", source.size_bytes, source.key)
    finally:
        await platform.close()


async def test_the_snapshot_of_a_backup_goes_with_its_end(platform: Platform) -> None:
    await platform.backed_up("x")
    await platform.clock.until(lambda: platform.hosts[0].snapshots() == [])


async def test_the_next_one_goes_on_from_the_last_good_one(platform: Platform) -> None:
    first = await platform.backed_up("same")
    platform.objects.puts.clear()
    second = await platform.backed_up("same")
    assert platform.backup(second).parent_id == first
    assert [path for path in platform.objects.puts if "/chunks/" in path] == []


async def test_one_at_a_time_is_taken_of_a_volume(platform: Platform) -> None:
    platform.objects.fails_with = AWAY
    await platform.back_up()
    with pytest.raises(ConflictError) as caught:
        await platform.back_up()
    assert caught.value.code == "backup-under-way"


async def test_while_the_store_is_away_it_waits_and_says_why(platform: Platform) -> None:
    platform.write("a")
    platform.objects.fails_with = AWAY
    id_ = await platform.back_up()
    await platform.clock.until(lambda: platform.backup(id_).reason == "the store is away")
    assert platform.backup(id_).state is BackupState.RUNNING
    platform.objects.gated = "/backups/"
    platform.objects.gate.clear()
    platform.objects.fails_with = None
    await platform.clock.until(lambda: platform.backup(id_).reason == "")
    assert platform.backup(id_).state is BackupState.RUNNING, (
        "it goes on, and says so before it comes further than it was"
    )
    platform.objects.gate.set()
    await platform.becomes(id_, BackupState.AVAILABLE)
    assert platform.backup(id_).reason == ""


async def test_an_agent_that_was_killed_goes_on_with_what_the_volume_was_then(platform: Platform) -> None:
    platform.write("then")
    platform.objects.fails_with = AWAY
    id_ = await platform.back_up()
    await platform.clock.until(lambda: platform.hosts[0].snapshots() == [id_])
    await platform.hosts[0].kill()
    platform.write("now")
    platform.objects.fails_with = None
    platform.hosts[0].start()
    await platform.becomes(id_, BackupState.AVAILABLE)
    again = await platform.restored(id_)
    await platform.place(again, "one")
    await platform.settles("again", VolumeState.AVAILABLE)
    assert platform.hosts[0].engine.disks.kept[again.id].holds == "then"


async def test_one_whose_end_was_not_heard_is_not_taken_twice(platform: Platform) -> None:
    platform.write("then")
    platform.objects.gated = "/backups/"
    platform.objects.gate.clear()
    id_ = await platform.back_up()
    await platform.clock.until(lambda: platform.objects.waiting > 0)
    platform.hosts[0].link.state = LinkState.CUT
    platform.objects.gate.set()
    await platform.clock.until(lambda: f"prj_x/backups/{id_}" in platform.objects.kept)
    await platform.hosts[0].kill()
    platform.hosts[0].link.state = LinkState.UP
    platform.write("now")
    platform.hosts[0].start()
    await platform.becomes(id_, BackupState.AVAILABLE)
    assert [path for path in platform.objects.puts if "/backups/" in path] == [f"prj_x/backups/{id_}"]


async def test_where_its_node_dies_it_fails_and_a_scheduled_one_is_taken_again_soon(platform: Platform) -> None:
    await platform.backed_up("x")
    platform.objects.fails_with = AWAY
    await set_policy(platform)
    await platform.clock.until(lambda: len(of_volume(platform, BackupState.RUNNING)) == 1)
    (running,) = of_volume(platform, BackupState.RUNNING)
    await platform.hosts[0].kill()
    await platform.clock.until(lambda: platform.node("one").health is NodeHealth.DOWN)
    await platform.becomes(running, BackupState.FAILED)
    assert "node went down" in platform.backup(running).reason
    platform.objects.fails_with = None
    platform.hosts[0].start()
    (policy,) = platform.rows(lambda tx: tx.backup_policies.select())
    assert policy.next_at <= platform.clock.now() + RETRY_S
    await platform.commit(another_day)
    await platform.clock.until(lambda: len(of_volume(platform, BackupState.AVAILABLE)) == 2)


async def test_a_node_gets_the_key_for_what_it_is_to_do_now_and_never_else(platform: Platform) -> None:
    id_ = await platform.backed_up("x")
    again = await platform.restored(id_)
    for node, volume_id in (("one", ""), ("two", ""), ("one", again.id), ("two", platform.volume_id)):
        with pytest.raises(NotFoundError):
            await access(platform, node, id_, volume_id)
    await platform.commit(lambda unit: verify(unit, platform, id_))
    answer = await access(platform, "one", id_)
    assert PASSWORD not in repr(answer)
    with pytest.raises(NotFoundError):
        await access(platform, "two", id_)
    with pytest.raises(UnavailableError):
        await access(platform, "one", id_, epoch=0)
    used = platform.rows(lambda tx: tx.audit.select(eq("action", "backups:use")))
    assert {record.resource for record in used} == {id_}
    assert platform.node("one").id in {record.actor for record in used}


# Damage


async def test_a_check_finds_all_whole(platform: Platform) -> None:
    id_ = await platform.backed_up("x")
    await checked(platform, id_)
    assert (platform.backup(id_).damage, platform.backup(id_).good) == ("", True)


async def test_a_chunk_that_is_missing_is_named_and_the_next_backup_has_it_again(platform: Platform) -> None:
    id_ = await platform.backed_up("x")
    (path,) = platform.chunks()
    platform.objects.kept[path] = b"\x01 rotten " + bytes(40)
    await checked(platform, id_)
    assert f"the backup {id_} is damaged: bytes 0 to 1048575 of the volume {platform.volume_id}" in (
        platform.backup(id_).damage
    )
    with pytest.raises(ConflictError) as caught:
        await platform.restored(id_)
    assert caught.value.code == "backup-damaged"
    later = await platform.backed_up("x")
    assert platform.backup(later).parent_id == ""
    await checked(platform, later)
    assert platform.backup(later).good


async def test_a_volume_is_not_made_of_what_is_damaged_and_says_so(platform: Platform) -> None:
    id_ = await platform.backed_up("x")
    again = await platform.restored(id_)
    for path in platform.chunks():
        del platform.objects.kept[path]
    await platform.place(again, "two")
    await platform.settles("again", VolumeState.ERROR)
    assert f"the backup {id_} is damaged" in platform.volume("again").observed.reason
    assert again.id not in platform.hosts[1].engine.disks.kept


# What goes


async def test_what_only_a_backup_needed_goes_with_it_and_no_more(platform: Platform) -> None:
    first = await platform.backed_up("a")
    alone = platform.chunks()
    second = await platform.backed_up("b")
    await platform.let_go(first)
    await platform.clock.until(lambda: not alone & platform.chunks())
    assert len(platform.chunks()) == 1
    assert f"prj_x/backups/{first}" not in platform.objects.kept
    await checked(platform, second)
    assert platform.backup(second).good


async def test_nothing_is_cleared_away_while_a_backup_is_taken(platform: Platform) -> None:
    first = await platform.backed_up("a")
    await platform.let_go(first)
    await platform.clock.until(lambda: not platform.chunks())
    kept = await platform.backed_up("a")
    before = platform.chunks()
    platform.write("b")
    platform.objects.gate.clear()
    running = await platform.back_up()
    await platform.clock.until(lambda: platform.objects.waiting > 0)
    await platform.let_go(kept)
    await platform.clock.advance(70)
    assert platform.chunks() == before
    platform.objects.gate.set()
    await platform.becomes(running, BackupState.AVAILABLE)
    await platform.clock.until(lambda: not before & platform.chunks())
    await checked(platform, running)
    assert platform.backup(running).good


async def test_no_backup_is_begun_while_old_ones_are_cleared_away(platform: Platform) -> None:
    id_ = await platform.backed_up("a")
    await platform.commit(lambda unit: hold_vault(unit, unit.now() + 20))
    waiting = await platform.back_up()
    await platform.clock.until(lambda: "cleared away" in platform.backup(waiting).reason)
    assert platform.backup(waiting).state is BackupState.PENDING
    await platform.becomes(waiting, BackupState.AVAILABLE)
    assert platform.backup(waiting).parent_id == id_


async def test_what_the_database_does_not_know_is_kept(platform: Platform) -> None:
    """As after the platform was put back to an older state of its own."""
    forgotten = await platform.backed_up("a")
    kept = platform.chunks()
    other = await platform.backed_up("b")
    await platform.commit(lambda unit: unit.tx.backups.delete(forgotten))
    await platform.let_go(other)
    await platform.clock.until(lambda: platform.chunks() == kept)
    await platform.clock.advance(70)
    assert platform.chunks() == kept


async def test_where_a_manifest_does_not_open_nothing_is_cleared_away(platform: Platform) -> None:
    first, second = await platform.backed_up("a"), await platform.backed_up("b")
    platform.objects.kept[f"prj_x/backups/{first}"] = b"\x01 rotten " + bytes(40)
    before = platform.chunks()
    await platform.let_go(second)
    await platform.clock.advance(70)
    assert platform.chunks() == before
    await platform.let_go(first)
    await platform.clock.until(lambda: not platform.chunks())


async def test_where_a_manifest_is_not_listed_nothing_is_cleared_away(platform: Platform) -> None:
    first, second = await platform.backed_up("a"), await platform.backed_up("b")
    hidden = platform.objects.kept.pop(f"prj_x/backups/{first}")
    before = platform.chunks()
    await platform.let_go(second)
    await platform.clock.advance(70)
    assert platform.chunks() == before
    platform.objects.kept[f"prj_x/backups/{first}"] = hidden
    await platform.clock.until(lambda: platform.chunks() < before)
    await checked(platform, first)
    assert platform.backup(first).good


async def test_however_many_wait_for_a_node_they_hide_no_other(platform: Platform) -> None:
    id_ = await platform.backed_up("a")
    (row,), (volume,) = platform.rows(lambda tx: tx.backups.select()), platform.rows(lambda tx: tx.volumes.select())

    def crowd(unit: Unit) -> None:
        away = unit.tx.volumes.insert(replace(volume, id="vol_" + "0" * 26, name="away", node_id="gone", version=1))
        for number in range(PAGE):
            waits = replace(row, id=f"bak_{number:026}", volume_id=away.id, state=BackupState.PENDING, version=1)
            unit.tx.backups.insert(waits)

    await platform.commit(crowd)
    assert id_ > f"bak_{PAGE:026}"
    later = await platform.back_up()
    await platform.becomes(later, BackupState.AVAILABLE)


async def test_a_policy_that_failed_for_weeks_goes_on_when_the_fault_is_over(platform: Platform) -> None:
    good = await platform.backed_up("a")
    await set_policy(platform)
    (row,) = [each for each in platform.rows(lambda tx: tx.backups.select()) if each.id == good]

    def fail_for_weeks(unit: Unit) -> None:
        for number in range(MAX_BACKUPS):
            failed = replace(row, id=f"bak_{number:026}", state=BackupState.FAILED, scheduled=True, version=1)
            unit.tx.backups.insert(replace(failed, created_at=row.created_at + number))

    await platform.commit(fail_for_weeks)
    await platform.commit(another_day)
    await platform.clock.until(lambda: len(of_volume(platform, BackupState.AVAILABLE)) == 2)


async def test_a_backup_that_is_being_taken_can_be_let_go(platform: Platform) -> None:
    platform.objects.fails_with = AWAY
    id_ = await platform.back_up()
    await platform.clock.until(lambda: platform.hosts[0].snapshots() == [id_])
    await platform.let_go(id_)
    platform.objects.fails_with = None
    await platform.clock.until(lambda: platform.rows(lambda tx: tx.backups.select()) == [])
    await platform.clock.until(lambda: platform.hosts[0].snapshots() == [])


async def test_a_backup_that_a_volume_is_made_of_stays(platform: Platform) -> None:
    id_ = await platform.backed_up("a")
    again = await platform.restored(id_)
    with pytest.raises(ConflictError) as caught:
        await platform.let_go(id_)
    assert caught.value.code == "backup-in-use"
    await platform.place(again, "two")
    await platform.settles("again", VolumeState.AVAILABLE)
    await platform.let_go(id_)


# By itself


async def test_a_policy_takes_one_each_day_and_keeps_what_it_says(platform: Platform) -> None:
    await set_policy(platform, daily=3, weekly=0, monthly=0)
    await platform.clock.until(lambda: len(of_volume(platform, BackupState.AVAILABLE)) == 1)
    by_hand = await platform.backed_up("x")
    for day in range(6):
        platform.write(f"day {day}")
        await platform.commit(another_day)
        await platform.clock.advance(1)
    left = of_volume(platform, BackupState.AVAILABLE)
    assert len(left) == 4
    assert by_hand in left
    await platform.clock.until(lambda: len(platform.chunks()) == 4)


async def test_without_a_policy_nothing_is_taken_by_itself(platform: Platform) -> None:
    await set_policy(platform)
    await platform.clock.until(lambda: len(of_volume(platform, BackupState.AVAILABLE)) == 1)
    await platform.commit(lambda unit: backups.drop_policy(unit, platform.in_(unit.tx)))
    await platform.commit(another_day)
    await platform.clock.advance(30)
    assert len(of_volume(platform, BackupState.AVAILABLE)) == 1


def of_volume(platform: Platform, state: BackupState) -> list[str]:
    found = platform.rows(lambda tx: tx.backups.select(eq("volume_id", platform.volume_id)))
    return [each.id for each in found if each.state is state]


async def set_policy(platform: Platform, daily: int = 7, weekly: int = 4, monthly: int = 12) -> None:
    wish = backups.PolicyWish(every_s=DAY_S, daily=daily, weekly=weekly, monthly=monthly)
    await platform.commit(lambda unit: backups.set_policy(unit, platform.in_(unit.tx), wish))


def another_day(unit: Unit) -> None:
    """What there is becomes a day older, and the next is due."""
    for backup in unit.tx.backups.select():
        unit.tx.backups.update(replace(backup, created_at=backup.created_at - DAY_S))
    for policy in unit.tx.backup_policies.select():
        unit.tx.backup_policies.update(replace(policy, next_at=unit.now()))
    unit.hint(subjects.BACKUPS)


def verify(unit: Unit, platform: Platform, id_: str) -> None:
    volume = platform.in_(unit.tx)
    backups.verify_backup(unit, volume, backups.find_backup(unit.tx, volume, id_))


async def checked(platform: Platform, id_: str) -> None:
    await platform.commit(lambda unit: verify(unit, platform, id_))
    await platform.clock.until(lambda: platform.backup(id_).verified_at is not None)


def hold_vault(unit: Unit, until: float) -> None:
    (vault,) = unit.tx.vaults.select()
    unit.tx.vaults.update(replace(vault, sweeping_until=until))


async def access(platform: Platform, node: str, id_: str, volume_id: str = "", epoch: int | None = None) -> object:
    found = platform.node(node)
    asked = BackupAccessRequest(
        node_id=found.id, epoch=found.epoch if epoch is None else epoch, backup_id=id_, volume_id=volume_id
    )
    return await platform.nodes.backup_access(asked)
