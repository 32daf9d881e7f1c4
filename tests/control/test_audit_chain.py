"""Audit records get their places after the commit, one after another, and a walk over them finds what was done to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.control.audit import BATCH, Anchor, Verification, parse_anchor, verify
from shellwego.control.authorization import Access
from shellwego.control.events import ScopeTarget
from shellwego.control.loops.outbox import COALESCE_S, relay_audit, relay_forever
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.audit import BEFORE_FIRST, Fault
from shellwego.core.errors import InvalidError
from shellwego.core.events import AuditRecord
from shellwego.core.tenancy import Grant, Organization, Principal
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import Order, eq


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def control(clock: VirtualClock) -> Control:
    return Control(MemoryStore(clock), MemoryBus(), clock)


async def write(control: Control, count: int, organization: str = "") -> None:
    def work(unit: Unit) -> None:
        for number in range(count):
            unit.audit("apps:write", f"app_{number}", organization_id=organization)

    await control.commit(work)


async def chain(control: Control, organization: str = "") -> list[AuditRecord]:
    return await control.read(lambda tx: tx.audit.select(eq("organization_id", organization), order=Order("position")))


def operator(control: Control) -> Access:
    grant = Grant(id="grn_1", principal_id="usr_1", role="owner", scope_id="", created_at=0.0)
    return Access(
        control, Principal(principal_id="usr_1", token_id="", scopes=(), grants=(grant,)), "audit:read", Caller()
    )


async def check(control: Control, anchor: Anchor | None = None, organization: str = "") -> Verification:
    return await verify(operator(control), ScopeTarget(organization), anchor)


async def tamper(control: Control, work: Callable[[Unit], object]) -> None:
    await control.commit(work)


async def test_records_are_chained_in_the_order_they_were_written(control: Control) -> None:
    await write(control, 2)
    await write(control, 1)
    assert await relay_audit(control) == 3
    records = await chain(control)
    assert [record.position for record in records] == [f"platform/{n:012}" for n in (1, 2, 3)]
    assert [record.id for record in records] == sorted(record.id for record in records)
    assert [record.previous for record in records] == [BEFORE_FIRST, records[0].hash, records[1].hash]
    assert await relay_audit(control) == 0


async def test_each_organization_has_a_chain_of_its_own(control: Control) -> None:
    await write(control, 1, "org_a")
    await write(control, 2, "org_b")
    await relay_audit(control)
    await write(control, 1, "org_a")
    await relay_audit(control)
    assert [record.position for record in await chain(control, "org_a")] == ["org_a/000000000001", "org_a/000000000002"]
    found = await check(control)
    assert (found.broken, found.checked, len(found.heads)) == (None, 4, 2)


async def test_more_records_than_a_batch_are_chained_and_checked(control: Control) -> None:
    await write(control, BATCH + 7)
    assert await relay_audit(control) == BATCH + 7
    assert (await check(control)).checked == BATCH + 7


async def test_a_record_is_chained_on_its_hint_and_what_a_crash_left_at_start(
    control: Control, clock: VirtualClock
) -> None:
    await write(control, 1)
    relaying = asyncio.ensure_future(relay_forever(control))
    await clock.advance(0)
    await write(control, 1)
    await clock.advance(COALESCE_S)
    assert [record.position for record in await chain(control)] == ["platform/000000000001", "platform/000000000002"]
    relaying.cancel()


async def test_two_relays_on_one_database_leave_no_hole_and_give_no_place_twice(tmp_path: Path) -> None:
    store = open_sqlite(tmp_path / "state.db", SystemClock())
    control = Control(store, MemoryBus(), SystemClock())
    await asyncio.gather(*(write(control, 2, f"org_{n % 3}") for n in range(20)))
    await asyncio.gather(relay_audit(control), relay_audit(control), write(control, 5, "org_0"))
    await relay_audit(control)
    found = await check(control)
    await store.close()
    assert (found.broken, found.checked, found.pending) == (None, 45, 0)


async def test_records_outside_of_the_chain_are_told(control: Control) -> None:
    await write(control, 2)
    found = await check(control)
    assert (found.checked, found.pending, found.broken) == (0, 2, None)


@pytest.fixture
async def sound(control: Control) -> list[AuditRecord]:
    """A chain of five."""
    await write(control, 5)
    await relay_audit(control)
    assert (await check(control)).broken is None
    return await chain(control)


async def test_a_record_that_was_changed_is_named(control: Control, sound: list[AuditRecord]) -> None:
    await tamper(control, lambda unit: unit.tx.audit.update(replace(sound[2], actor="usr_other")))
    found = await check(control)
    assert found.broken is not None
    assert (found.broken.fault, found.broken.record_id, found.checked) == (Fault.CHANGED, sound[2].id, 2)


async def test_a_record_that_was_removed_is_named(control: Control, sound: list[AuditRecord]) -> None:
    await tamper(control, lambda unit: unit.tx.audit.delete(sound[1].id))
    found = await check(control)
    assert found.broken is not None
    assert (found.broken.fault, found.broken.position) == (Fault.REMOVED, sound[1].position)


async def test_a_copy_at_a_place_that_is_taken_is_named(control: Control, sound: list[AuditRecord]) -> None:
    await tamper(control, lambda unit: unit.tx.audit.insert(replace(sound[1], id="aud_z")))
    found = await check(control)
    assert found.broken is not None
    assert (found.broken.fault, found.broken.record_id) == (Fault.CHANGED, "aud_z")


async def test_records_cut_off_from_the_end_show_and_so_does_what_is_chained_after_them(
    control: Control, sound: list[AuditRecord]
) -> None:
    await tamper(control, lambda unit: [unit.tx.audit.delete(record.id) for record in sound[3:]])
    cut = await check(control)
    await write(control, 1)
    await relay_audit(control)
    gone_on = await check(control)
    for found in (cut, gone_on):
        assert found.broken is not None
        assert (found.broken.fault, found.broken.position) == (Fault.REMOVED, sound[3].position)


async def test_a_chain_that_is_gone_as_a_whole_shows(control: Control, sound: list[AuditRecord]) -> None:
    await tamper(control, lambda unit: [unit.tx.audit.delete(record.id) for record in sound])
    found = await check(control)
    assert found.broken is not None
    assert (found.broken.fault, found.broken.position) == (Fault.REMOVED, sound[0].position)


async def test_a_chain_made_anew_holds_by_itself_but_not_against_an_anchor(
    control: Control, sound: list[AuditRecord]
) -> None:
    head = (await check(control)).heads[0]
    assert (await check(control, head)).broken is None

    def forge(unit: Unit) -> None:
        for record in sound:
            changed = replace(record, actor="usr_other", position="", previous="", hash="")
            unit.tx.audit.update(changed)
        unit.tx.counters.delete("audit/platform")

    await tamper(control, forge)
    await relay_audit(control)
    assert (await check(control)).broken is None
    found = await check(control, head)
    assert found.broken is not None
    assert found.broken.position == head.position


async def test_an_anchor_beyond_the_end_shows_what_was_cut_off_with_all_traces(
    control: Control, sound: list[AuditRecord]
) -> None:
    head = (await check(control)).heads[0]

    def cut(unit: Unit) -> None:
        unit.tx.audit.delete(sound[4].id)
        counter = unit.tx.counters.get("audit/platform")
        assert counter is not None
        unit.tx.counters.update(replace(counter, value=4))

    await tamper(control, cut)
    assert (await check(control)).broken is None
    assert (await check(control, head)).broken is not None


async def test_an_anchor_of_another_chain_is_refused(control: Control) -> None:
    def make(unit: Unit) -> Organization:
        return unit.tx.organizations.insert(
            Organization(id=unit.new_id("org"), name="acme", plan="free", created_at=0.0)
        )

    organization = await control.commit(make)
    with pytest.raises(InvalidError, match="another chain"):
        await check(control, Anchor("platform/000000000001", "0" * 64), organization.id)


@pytest.mark.parametrize(
    "text", ["x", "platform/000000000001", "platform/1:" + "0" * 64, ":", "platform/000000000001:00"]
)
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_anchor(text)
