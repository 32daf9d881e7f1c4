"""The chain of audit records: each way to tamper with it shows, at the first place where it does not hold."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.audit import (
    BEFORE_FIRST,
    Break,
    Fault,
    break_at,
    chained,
    digest,
    end_break,
    position,
    split_position,
)
from shellwego.core.events import AuditRecord

TEXT_FIELDS = ("id", "actor", "action", "resource", "detail", "trace_id", "organization_id", "project_id", "previous")


def record(number: int, organization: str = "org_1") -> AuditRecord:
    return AuditRecord(
        id=f"aud_{number}",
        time=1000.0 + number / 3,
        actor="usr_1",
        action="apps:write",
        resource=f"app_{number}",
        allowed=number % 2 == 0,
        organization_id=organization,
    )


def make_chain(length: int, organization: str = "org_1") -> list[AuditRecord]:
    records: list[AuditRecord] = []
    for number in range(1, length + 1):
        previous = records[-1].hash if records else BEFORE_FIRST
        records.append(chained(record(number, organization), number, previous))
    return records


def first_break(records: list[AuditRecord]) -> Break | None:
    """As a walk in the order of positions finds it."""
    before: AuditRecord | None = None
    for each in sorted(records, key=lambda each: each.position):
        if found := break_at(before, each):
            return found
        before = each
    return None


CHAINS = st.integers(2, 12).map(make_chain)


@given(CHAINS)
def test_a_chain_as_it_was_made_holds(records: list[AuditRecord]) -> None:
    assert first_break(records) is None
    assert end_break(records[-1].position, records[-1].position) is None


@given(CHAINS, st.data())
def test_a_record_that_was_changed_is_named(records: list[AuditRecord], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(records) - 1))
    name = data.draw(st.sampled_from(TEXT_FIELDS))
    changed = replace(records[index], **{name: getattr(records[index], name) + "x"})
    found = first_break([*records[:index], changed, *records[index + 1 :]])
    assert found is not None
    assert (found.fault, found.position) == (Fault.CHANGED, records[index].position)


@given(CHAINS, st.data())
def test_a_refusal_that_was_made_a_permission_is_named(records: list[AuditRecord], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(records) - 1))
    changed = replace(records[index], allowed=not records[index].allowed)
    found = first_break([*records[:index], changed, *records[index + 1 :]])
    assert found is not None
    assert found.record_id == changed.id


@given(CHAINS, st.data())
def test_a_record_that_was_removed_is_named_by_its_place(records: list[AuditRecord], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(records) - 2))
    found = first_break([*records[:index], *records[index + 1 :]])
    assert found is not None
    assert (found.fault, found.position) == (Fault.REMOVED, records[index].position)


@given(CHAINS, st.data())
def test_what_is_missing_at_the_end_is_named_by_its_place(records: list[AuditRecord], data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, len(records) - 1))
    assert first_break(records[:kept]) is None
    found = end_break(records[kept - 1].position, records[-1].position)
    assert found is not None
    assert (found.fault, found.position) == (Fault.REMOVED, records[kept].position)


@given(CHAINS, st.data())
def test_a_record_that_was_slipped_in_is_named(records: list[AuditRecord], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(records) - 1))
    forged = chained(replace(record(99), id="aud_z"), index + 1, records[index].previous)
    found = first_break([*records[: index + 1], forged, *records[index + 1 :]])
    assert found is not None
    assert (found.fault, found.position) == (Fault.INSERTED, forged.position)


@given(CHAINS, st.data())
def test_records_whose_places_were_exchanged_are_named(records: list[AuditRecord], data: st.DataObject) -> None:
    """Even where their own hashes were made to fit."""
    index = data.draw(st.integers(0, len(records) - 2))
    one, other = records[index], records[index + 1]
    moved = [replace(other, position=one.position), replace(one, position=other.position)]
    fitted = [replace(each, hash=digest(each)) for each in moved]
    for exchanged in (moved, fitted):
        found = first_break([*records[:index], *exchanged, *records[index + 2 :]])
        assert found is not None
        assert found.position == one.position


@given(CHAINS, st.data())
def test_a_change_whose_own_hash_was_made_to_fit_shows_in_the_next_record(
    records: list[AuditRecord], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(records) - 2))
    changed = replace(records[index], actor="usr_2")
    fitted = replace(changed, hash=digest(changed))
    found = first_break([*records[:index], fitted, *records[index + 1 :]])
    assert found is not None
    assert (found.fault, found.position) == (Fault.REORDERED, records[index + 1].position)


def test_two_fields_cannot_trade_characters() -> None:
    one = chained(replace(record(1), actor="ab", action="c"), 1, BEFORE_FIRST)
    other = chained(replace(record(1), actor="a", action="bc"), 1, BEFORE_FIRST)
    assert one.hash != other.hash


def test_positions_sort_as_their_numbers() -> None:
    places = [position("org_1", number) for number in (1, 2, 10, 99, 100, 10**11)]
    assert places == sorted(places)
    assert [split_position(place)[1] for place in places] == [1, 2, 10, 99, 100, 10**11]
    assert [split_position(text)[1] for text in ("", "org_1", "org_1/1", "org_1/x" * 2, "org_1/" + "²" * 12)] == [0] * 5
