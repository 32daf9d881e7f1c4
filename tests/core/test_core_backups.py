"""What a policy keeps and lets go, when the next backup is due, and what is stored of a backup."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.backups import (
    BACKUP_MOVES,
    DAY_S,
    HELD_UP_S,
    LATE_S,
    MAX_FAILED,
    Backup,
    BackupPolicy,
    BackupState,
    Halt,
    Vault,
    going,
    halts,
    in_turn,
    is_hopeless,
    may_be_removed,
    next_due,
    policy_faults,
    stale_failures,
    superseded,
)
from shellwego.core.chunks import CHUNK_BYTES, BrokenError, Manifest, VaultCipher, damaged_chunk, entry, is_zeros
from shellwego.core.sensitive import Sensitive

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC).timestamp()
POLICY = BackupPolicy(id="vol_1", project_id="prj_1", next_at=NOW, created_at=0.0)
NONCE = bytes(12)


def backup(
    at: float, *, state: BackupState = BackupState.AVAILABLE, damage: str = "", scheduled: bool = True
) -> Backup:
    return Backup(
        id=f"bak_{at:020.3f}",
        volume_id="vol_1",
        project_id="prj_1",
        scheduled=scheduled,
        state=state,
        damage=damage,
        size_bytes=1,
        created_at=at,
        created_by="system",
    )


def moments(backups: list[Backup]) -> list[str]:
    return [datetime.fromtimestamp(each.created_at, UTC).strftime("%Y-%m-%d") for each in backups]


def kept(policy: BackupPolicy, backups: list[Backup]) -> list[Backup]:
    gone = {each.id for each in superseded(policy, backups)}
    return [each for each in backups if each.id not in gone]


# What stays


def test_of_two_years_of_days_seven_days_four_weeks_and_twelve_months_stay() -> None:
    daily = [backup(NOW - day * DAY_S) for day in range(730, -1, -1)]
    assert moments(kept(POLICY, daily)) == [
        *("2025-12-31", "2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"),
        *("2026-06-30", "2026-07-31", "2026-08-31", "2026-09-30", "2026-10-31"),
        *("2026-11-01", "2026-11-08", "2026-11-15"),
        *("2026-11-16", "2026-11-17", "2026-11-18", "2026-11-19", "2026-11-20", "2026-11-21", "2026-11-22"),
    ]


def test_of_several_in_a_day_the_newest_stays() -> None:
    hourly = [backup(NOW - hour * 3600) for hour in range(7, -1, -1)]
    assert kept(replace(POLICY, daily=1, weekly=0, monthly=0), hourly) == hourly[-1:]


def test_what_was_asked_for_by_hand_stays_for_ever() -> None:
    asked = backup(NOW - 3000 * DAY_S, scheduled=False)
    assert kept(POLICY, [asked, backup(NOW)]) == [asked, backup(NOW)]


def test_what_is_damaged_or_failed_takes_the_place_of_nothing_good() -> None:
    good, damaged = backup(NOW - 10 * DAY_S), backup(NOW, damage="bytes 0 to 1")
    failed = backup(NOW + 1, state=BackupState.FAILED)
    policy = replace(POLICY, daily=1, weekly=0, monthly=0)
    assert kept(policy, [good, damaged, failed]) == [good, damaged, failed]
    later = backup(NOW + 2)
    assert kept(policy, [good, damaged, failed, later]) == [later]


@pytest.mark.parametrize("state", [BackupState.PENDING, BackupState.RUNNING, BackupState.DELETING])
def test_what_is_under_way_is_left_alone(state: BackupState) -> None:
    under_way = backup(NOW - 400 * DAY_S, state=state)
    assert kept(POLICY, [under_way, backup(NOW)])[0] == under_way


def test_of_those_that_failed_the_newest_of_each_kind_are_kept() -> None:
    by_hand = [backup(NOW + at, state=BackupState.FAILED, scheduled=False) for at in range(MAX_FAILED + 3)]
    by_policy = [backup(NOW - 100 + at, state=BackupState.FAILED) for at in range(MAX_FAILED + 2)]
    good = [backup(NOW - 200, scheduled=False), backup(NOW - 300)]
    assert stale_failures([*by_hand, *by_policy, *good]) == [*by_policy[:2], *by_hand[:3]]


ages = st.lists(st.integers(0, 1500 * DAY_S * 1000).map(lambda ms: ms / 1000), max_size=60, unique=True)
policies = st.builds(
    lambda daily, weekly, monthly: replace(POLICY, daily=daily, weekly=weekly, monthly=monthly),
    *[st.integers(0, 9)] * 3,
)
states = st.sampled_from([BackupState.AVAILABLE, BackupState.AVAILABLE, BackupState.FAILED, BackupState.RUNNING])


@given(policies, ages, st.data())
def test_the_last_good_one_always_stays_and_pruning_twice_changes_nothing(
    policy: BackupPolicy, found: list[float], data: st.DataObject
) -> None:
    every = [
        backup(NOW - age, state=data.draw(states), damage=data.draw(st.sampled_from(["", "", "damaged"])))
        for age in found
    ]
    left = kept(policy, every)
    good = [each for each in every if each.good]
    assert not good or max(good, key=lambda each: (each.created_at, each.id)) in left
    assert len([each for each in left if each.good]) <= policy.daily + policy.weekly + policy.monthly + 1
    assert superseded(policy, left) == []


@given(policies, ages, st.floats(0, 3))
def test_a_day_that_is_kept_today_is_not_let_go_by_one_more_backup_today(
    policy: BackupPolicy, found: list[float], later: float
) -> None:
    before = [backup(NOW - age) for age in found]
    after = [*before, backup(NOW + later)]
    lost = {each.id for each in kept(policy, before)} - {each.id for each in kept(policy, after)}
    assert len(lost) <= 4


# When


@given(st.integers(3600, 31 * DAY_S), st.floats(0, 1e7))
def test_the_next_is_due_in_the_rhythm_and_after_now(every: int, late: float) -> None:
    policy = replace(POLICY, every_s=every)
    now = NOW + late
    due = next_due(policy, now)
    assert now < due <= now + every + 1
    assert (due - NOW) / every == pytest.approx(round((due - NOW) / every))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"every_s": 3599}, "every_s"),
        ({"every_s": 32 * DAY_S}, "every_s"),
        ({"daily": -1}, "daily"),
        ({"monthly": 367}, "monthly"),
        ({"daily": 0, "weekly": 0, "monthly": 0}, "daily"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_its_field(wrong: dict[str, int], field: str) -> None:
    assert [fault.field for fault in policy_faults(replace(POLICY, **wrong))] == [field]  # type: ignore[arg-type]
    assert not policy_faults(POLICY)


# What is given up, and what may be removed

RUNNING = replace(backup(NOW, state=BackupState.RUNNING), node_id="node_1", done_bytes=50, reason="no room")
DIRTY = Vault(id="prj_1", key_id="dek_1", garbage=True, created_at=NOW)


def test_one_that_told_why_it_is_held_up_and_comes_no_further_is_given_up_in_the_end() -> None:
    known = halts({}, [RUNNING, replace(RUNNING, id="bak_2", reason="")], 100.0)
    assert known == {RUNNING.id: Halt(50, 100.0)}
    known = halts(known, [RUNNING], 100.0 + HELD_UP_S)
    assert not is_hopeless(RUNNING, DIRTY, known[RUNNING.id], 99.0 + HELD_UP_S)
    assert is_hopeless(RUNNING, DIRTY, known[RUNNING.id], 100.0 + HELD_UP_S)


def test_one_that_begins_anew_comes_no_further_before_it_is_where_it_was() -> None:
    known = halts({}, [RUNNING], 100.0)
    again = replace(RUNNING, done_bytes=20, reason="")
    known = halts(known, [again], 200.0)
    assert not is_hopeless(again, DIRTY, known[again.id], 100.0 + HELD_UP_S), "it tells of no trouble now"
    assert halts(known, [RUNNING], 300.0) == {RUNNING.id: Halt(50, 100.0)}
    further = replace(RUNNING, done_bytes=51)
    assert not is_hopeless(further, DIRTY, known[further.id], 100.0 + HELD_UP_S)
    assert halts(known, [further], 300.0) == {RUNNING.id: Halt(51, 300.0)}
    assert halts(known, [replace(further, reason="")], 300.0) == {}


def test_none_is_given_up_where_there_is_nothing_to_sweep() -> None:
    late = 200.0 + HELD_UP_S
    assert not is_hopeless(RUNNING, replace(DIRTY, garbage=False), Halt(50, 100.0), late)
    assert not is_hopeless(replace(RUNNING, state=BackupState.FAILED), DIRTY, Halt(50, 100.0), late)


def test_what_a_node_may_still_store_is_not_removed_before() -> None:
    gone = going(RUNNING, NOW + 5)
    assert (gone.state, gone.ended_at) == (BackupState.DELETING, NOW + 5)
    assert [may_be_removed(gone, NOW + 5 + after) for after in (0, LATE_S - 1, LATE_S)] == [False, False, True]
    failed = replace(RUNNING, state=BackupState.FAILED, ended_at=NOW)
    assert may_be_removed(going(failed, NOW + LATE_S), NOW + LATE_S), "it is counted from when it failed"
    assert not may_be_removed(replace(gone, ended_at=None), NOW), "as an older version let it go"


def test_what_is_there_or_was_never_begun_is_removed_at_once() -> None:
    there = replace(RUNNING, state=BackupState.AVAILABLE, digest="d", ended_at=NOW)
    assert may_be_removed(going(there, NOW), NOW)
    assert may_be_removed(going(replace(RUNNING, state=BackupState.FAILED, node_id=""), NOW), NOW)


def test_projects_take_turns() -> None:
    first, second, third = (replace(backup(NOW + at), project_id="prj_1") for at in range(3))
    other = replace(backup(NOW + 9), project_id="prj_2")
    assert in_turn([first, second, third, other]) == [first, other, second, third]


def test_every_state_has_its_moves_and_nothing_leaves_deletion() -> None:
    assert set(BACKUP_MOVES) == set(BackupState)
    assert not BACKUP_MOVES[BackupState.DELETING]


# What is stored

CIPHER = VaultCipher(Sensitive(bytes(range(32))))
OTHER = VaultCipher(Sensitive(bytes(32)))


@given(st.binary(max_size=5000))
def test_a_chunk_opens_to_what_it_was_and_only_under_its_id_and_key(data: bytes) -> None:
    chunk_id = CIPHER.chunk_id(data)
    stored = CIPHER.seal_chunk(chunk_id, data, NONCE)
    assert CIPHER.open_chunk(chunk_id, stored) == data
    for cipher, name in ((OTHER, chunk_id), (CIPHER, bytes(32))):
        with pytest.raises(BrokenError):
            cipher.open_chunk(name, stored)


@given(st.data())
def test_one_changed_byte_is_found_wherever_it_is(data: st.DataObject) -> None:
    chunk_id = CIPHER.chunk_id(b"some content")
    stored = bytearray(CIPHER.seal_chunk(chunk_id, b"some content", NONCE))
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BrokenError):
        CIPHER.open_chunk(chunk_id, bytes(stored))


def test_content_under_anothers_id_is_found_though_it_was_sealed_so() -> None:
    chunk_id = CIPHER.chunk_id(b"this")
    with pytest.raises(BrokenError):
        CIPHER.open_chunk(chunk_id, CIPHER.seal_chunk(chunk_id, b"that", NONCE))


def test_equal_data_of_two_projects_has_nothing_in_common() -> None:
    data = b"the same" * 1000
    assert CIPHER.chunk_id(data) == VaultCipher(Sensitive(bytes(range(32)))).chunk_id(data)
    assert CIPHER.chunk_id(data) != OTHER.chunk_id(data)


@given(st.lists(st.tuples(st.integers(0, 1 << 24), st.binary(min_size=32, max_size=32)), max_size=20))
def test_a_manifest_lists_what_it_listed_and_opens_for_its_backup_alone(chunks: list[tuple[int, bytes]]) -> None:
    table = b"".join(entry(*chunk) for chunk in chunks)
    manifest = Manifest("bak_1", "vol_1", "bak_0", 5 * CHUNK_BYTES, True, table)
    stored = CIPHER.seal_manifest(manifest, NONCE)
    assert CIPHER.open_manifest("bak_1", stored) == manifest
    assert list(manifest.chunks()) == chunks
    with pytest.raises(BrokenError):
        CIPHER.open_manifest("bak_2", stored)


def test_damage_is_named_by_backup_volume_and_place() -> None:
    manifest = Manifest("bak_1", "vol_1", "", CHUNK_BYTES + 10, False, b"")
    told = damaged_chunk(manifest, 1, b"\xab" * 32, "missing").message
    assert "bak_1" in told
    assert "bytes 1048576 to 1048585 of the volume vol_1" in told
    assert "ab" * 32 in told


def test_zeros_are_known() -> None:
    assert is_zeros(bytes(4096))
    assert not is_zeros(bytes(4095) + b"\x01")
