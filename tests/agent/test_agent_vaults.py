"""Vaults on real agents and loops: a full one becomes free, what nobody needs goes, and none has the others wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.control import backups
from shellwego.control.loops import vaults as vaults_loop
from shellwego.control.loops.backups import BATCH
from shellwego.control.sealing import OpenKey, keep_key
from shellwego.control.unit import Unit
from shellwego.control.vaults import forget_vault
from shellwego.control.volumereports import forget
from shellwego.core.backups import HELD_UP_S, LATE_S, BackupState, Vault
from shellwego.core.envelope import Label
from shellwego.core.errors import UnavailableError
from shellwego.drivers.uplink.memory import LinkState
from shellwego.ports.store import eq
from tests.agent.backup_world import AWAY, NO_ROOM, Platform, project
from tests.control.rollout_world import PRJ

# A full repository


async def test_a_full_repository_becomes_free_though_backups_wait_for_room(platform: Platform) -> None:
    first = await platform.backed_up("a")
    alone = platform.chunks()
    platform.objects.room = len(platform.objects.kept)
    platform.write("b")
    held_up = await platform.back_up()
    await platform.clock.until(lambda: platform.backup(held_up).reason == NO_ROOM)
    since = platform.clock.monotonic()
    await platform.let_go(first)
    later = await platform.commit(lambda unit: backups.add_backup(unit, platform.in_(unit.tx)).id)
    await platform.clock.until(lambda: "cleared away first" in platform.backup(later).reason)
    await platform.becomes(held_up, BackupState.FAILED)
    assert HELD_UP_S - 10 <= platform.clock.monotonic() - since <= HELD_UP_S + 20
    assert platform.backup(held_up).reason == NO_ROOM
    await platform.clock.until(lambda: held_up not in platform.hosts[0].snapshots(), timeout=1)
    told = platform.rows(lambda tx: [each for each in tx.events.select() if each.type == "volume.backup.failed"])
    assert [each.data for each in told] == [{"name": "data", "backup": held_up, "reason": NO_ROOM}]
    await platform.clock.until(lambda: not alone & platform.chunks(), timeout=5)
    await platform.becomes(later, BackupState.AVAILABLE)


async def test_where_nothing_is_to_be_cleared_away_one_waits_for_room_as_long_as_it_takes(platform: Platform) -> None:
    platform.write("a")
    platform.objects.room = 0
    held_up = await platform.back_up()
    await platform.clock.until(lambda: platform.backup(held_up).reason == NO_ROOM)
    await platform.clock.advance(6 * HELD_UP_S)
    assert platform.backup(held_up).state is BackupState.RUNNING
    platform.objects.room = 2
    await platform.becomes(held_up, BackupState.AVAILABLE)


# Manifests that nobody knows


async def test_a_manifest_that_comes_after_its_backup_was_let_go_is_removed(platform: Platform) -> None:
    platform.objects.gated = "/backups/"
    platform.objects.gate.clear()
    id_ = await platform.back_up()
    await platform.clock.until(lambda: platform.objects.waiting > 0)
    platform.hosts[0].link.state = LinkState.CUT
    await platform.let_go(id_)
    await platform.clock.advance(LATE_S - 70)
    platform.objects.gate.set()
    await platform.clock.until(lambda: f"{PRJ}/backups/{id_}" in platform.objects.puts)
    await platform.clock.until(lambda: platform.rows(lambda tx: tx.backups.select()) == [])
    await platform.clock.until(lambda: platform.objects.kept == {})


async def test_a_node_that_is_cut_off_stores_no_manifest_of_what_was_given_up(platform: Platform) -> None:
    platform.write("x")
    platform.objects.gated = "/chunks/"
    platform.objects.gate.clear()
    id_ = await platform.back_up()
    await platform.clock.until(lambda: platform.objects.waiting > 0)
    platform.hosts[0].link.state = LinkState.CUT
    await platform.becomes(id_, BackupState.FAILED)
    platform.objects.gate.set()
    await platform.clock.advance(2 * LATE_S)
    platform.hosts[0].link.state = LinkState.UP
    await platform.clock.until(lambda: platform.hosts[0].snapshots() == [])
    assert [path for path in platform.objects.puts if "/backups/" in path] == []


async def test_one_whose_node_was_cut_off_for_a_moment_goes_on(platform: Platform) -> None:
    platform.write("x")
    platform.objects.gated = "/chunks/"
    platform.objects.gate.clear()
    id_ = await platform.back_up()
    await platform.clock.until(lambda: platform.objects.waiting > 0)
    platform.hosts[0].link.state = LinkState.CUT
    platform.objects.gate.set()
    await platform.clock.advance(3)
    platform.hosts[0].link.state = LinkState.UP
    await platform.becomes(id_, BackupState.AVAILABLE)
    sent = sum(map(len, platform.objects.kept.values()))
    assert platform.backup(id_).stored_bytes == sent, "all in one go: it did not begin anew"


async def test_a_failed_one_that_is_forgotten_with_its_volume_leaves_no_manifest(platform: Platform) -> None:
    id_ = await platform.backed_up("a")

    def fail_and_forget(unit: Unit) -> None:
        row = unit.tx.backups.get(id_)
        assert row is not None
        unit.tx.backups.update(replace(row, state=BackupState.FAILED, digest="", ended_at=unit.now()))
        forget(unit, platform.in_(unit.tx))

    await platform.commit(fail_and_forget)
    await platform.clock.until(lambda: platform.rows(lambda tx: tx.backups.select()) == [])
    await platform.clock.until(lambda: platform.objects.kept == {})


# A project that is gone


async def test_of_a_deleted_project_nothing_is_left_and_of_no_other_anything_is_touched(platform: Platform) -> None:
    unknown = await platform.backed_up("a")
    others = {
        f"{name}/{what}/{'0' * 64}": b"x" for name in ("prj_xy", "prj_", "prj_y") for what in ("backups", "chunks")
    }
    platform.objects.kept.update(others)
    await platform.commit(lambda unit: unit.tx.backups.delete(unknown))
    platform.objects.fails_with = AWAY
    await platform.commit(delete_project)
    await platform.clock.advance(300)
    assert f"{PRJ}/backups/{unknown}" in platform.objects.kept
    assert platform.rows(lambda tx: tx.vaults.select()), "that the store does not answer does not say that it is empty"
    platform.objects.fails_with = None
    await platform.clock.until(lambda: platform.rows(lambda tx: tx.vaults.select()) == [])
    assert platform.objects.kept == others


async def test_what_can_still_be_opened_or_is_known_is_not_taken_for_a_deleted_projects(platform: Platform) -> None:
    known = await platform.backed_up("a")
    before = dict(platform.objects.kept)
    await platform.commit(delete_project)
    await platform.clock.advance(300)
    assert platform.objects.kept == before, "the row of a backup is there"

    key = await platform.sealer.new_key(Label(purpose="test", subject="x"))

    def key_is_there(unit: Unit) -> None:
        unit.tx.backups.delete(known)
        keep_key(unit, key.row)
        (vault,) = unit.tx.vaults.select()
        unit.tx.vaults.update(replace(vault, key_id=key.row.id))

    await platform.commit(key_is_there)
    await platform.clock.advance(300)
    assert platform.objects.kept == before


# Turns


async def test_backups_whose_keys_cannot_be_had_hide_no_other(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await platform.backed_up("a")

    async def away(_: Label) -> OpenKey:
        await platform.clock.sleep(30)
        raise UnavailableError("kms-unavailable", "the KMS does not answer")

    monkeypatch.setattr(platform.sealer, "new_key", away)
    await platform.commit(lambda unit: crowd(unit, platform))
    later = await platform.back_up()
    await platform.clock.until(lambda: platform.backup(later).state is BackupState.AVAILABLE, timeout=60)
    monkeypatch.undo()
    await platform.clock.until(lambda: len(platform.rows(lambda tx: tx.vaults.select())) == BATCH + 1)


async def test_vaults_that_cannot_be_swept_hide_no_other(platform: Platform) -> None:
    id_ = await platform.backed_up("a")

    def held(unit: Unit) -> None:
        for number in range(vaults_loop.BATCH):
            vault = Vault(id=f"prj_{number:026}", key_id="dek_x", garbage=True, created_at=0.0)
            unit.tx.vaults.insert(replace(vault, sweeping_until=unit.now() + 1e6))

    await platform.commit(held)
    await platform.let_go(id_)
    await platform.clock.until(lambda: platform.objects.kept == {})


def crowd(unit: Unit, platform: Platform) -> None:
    """They wait for a node that is gone, each in a project of its own."""
    volume = platform.in_(unit.tx)
    (row,) = unit.tx.backups.select(eq("volume_id", volume.id))
    for number in range(BATCH):
        own = unit.tx.projects.insert(replace(project(unit.tx), id=f"prj_{number:026}", name=f"p{number}", version=1))
        away = replace(volume, id=f"vol_{number:026}", project_id=own.id, node_id="gone", version=1)
        unit.tx.volumes.insert(away)
        waits = replace(row, id=f"bak_{number:026}", volume_id=away.id, project_id=own.id, version=1)
        unit.tx.backups.insert(replace(waits, state=BackupState.PENDING, digest="", node_id=""))


def delete_project(unit: Unit) -> None:
    """As it is deleted; what ran in it is no matter here."""
    forget_vault(unit, project(unit.tx))
    unit.tx.projects.delete(PRJ)
