"""Leases of volumes that could live twice: whatever has one is gone before anybody else may begin with a copy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.assignments import Assignment, VolumeOrder, WorkloadMount
from shellwego.core.attempts import Memory
from shellwego.core.convergence import DeleteVm, ResumeVm, RunVm, StopVm, converge
from shellwego.core.vms import VmPhase, VmView
from shellwego.core.volume_convergence import converge_volumes
from shellwego.core.volumeleases import (
    END_SHARE,
    HURRY_S,
    OVER_S,
    TERM_S,
    UNWRITTEN_S,
    Lapse,
    VolumeLease,
    grace_s,
    lapse,
    leases_of,
)
from shellwego.core.volumes import VolumeView
from tests.agent.agent_world import workload

GIB = 1 << 30
KILLED_S = 1.0
"""What an engine may take beyond the moment."""
ORDER = VolumeOrder(volume_id="vol_1", size_bytes=GIB, made=True, lease_s=TERM_S)
WORK = workload("serve", mounts=(WorkloadMount(volume_id="vol_1", name="data", destination="/data"),))
LEASE = VolumeLease(asked_at=100.0, term_s=TERM_S)
RUNNING = VmView(vm_id="vm_1", instance_id="ins_1", attempt=1, phase=VmPhase.RUNNING, identity="app_1")


def lapsed(now: float, *, order: VolumeOrder = ORDER, held: bool = True) -> Lapse | None:
    return lapse(WORK, {order.volume_id: order}, {"vol_1": LEASE} if held else {}, now)


REPORTS = st.lists(
    st.tuples(
        st.floats(0.01, 40),  # until the next one is sent
        st.floats(0, 30),  # on its way
        st.booleans(),  # whether it arrives
        st.booleans(),  # whether its answer does
    ),
    min_size=1,
    max_size=25,
)


@given(reports=REPORTS, drift=st.floats(-1e-3, 1e-3), listens_from=st.floats(0, 100))
def test_what_has_the_volume_is_gone_before_its_copy_may_become_it(
    reports: list[tuple[float, float, bool, bool]], drift: float, listens_from: float
) -> None:
    """Whatever is lost or late, with clocks that go a thousandth wrong, and a control plane that begins to listen late."""
    asked = ends = written = 0.0
    grants = []
    for pause, there, arrives, answered in reports:
        asked += pause
        if not arrives:
            continue
        grants.append(asked + there)
        if answered:
            ends = max(ends, asked + (TERM_S * END_SHARE) * (1 + drift))
    for granted in sorted(grants):
        written = granted if granted - written >= UNWRITTEN_S else written
    promoted = max(written, listens_from) + OVER_S
    assert ends + KILLED_S < promoted


@pytest.mark.parametrize(
    ("now", "left_s"),
    [(100.0, None), (139.9, None), (140.0, 15.0), (150.0, 5.0), (155.0, 0.0), (10_000.0, 0.0)],
)
def test_a_vm_is_asked_to_end_at_two_thirds_of_the_term_and_has_the_rest_until_it_is_killed(
    now: float, left_s: float | None
) -> None:
    found = lapsed(now)
    assert (found.left_s if found else None) == left_s


def test_nothing_begins_before_the_host_enforces_the_lease_but_what_runs_goes_on() -> None:
    found = lapsed(100.0, held=False)
    assert found is not None
    assert (found.left_s, found.reason) == (None, "the volume data is not leased to this node yet")


def test_a_volume_without_a_lease_never_lapses() -> None:
    assert lapsed(10_000.0, order=replace(ORDER, lease_s=0.0), held=False) is None
    assert leases_of([replace(ORDER, lease_s=0.0)], 1.0) == {}


def test_of_several_volumes_the_one_that_ends_first_counts() -> None:
    mounts = tuple(WorkloadMount(volume_id=id_, name=id_, destination=f"/{id_}") for id_ in ("vol_1", "vol_2", "vol_3"))
    orders = {id_: replace(ORDER, volume_id=id_) for id_ in ("vol_1", "vol_2", "vol_3")}
    held = {"vol_1": LEASE, "vol_2": VolumeLease(asked_at=90.0, term_s=TERM_S)}
    found = lapse(workload("serve", mounts=mounts), orders, held, 141.0)
    assert found is not None
    assert found.left_s == 4.0
    assert "vol_2" in found.reason


@given(own=st.floats(0, 600), left=st.floats(0, 60))
def test_a_vm_is_given_its_own_grace_as_far_as_there_is_time(own: float, left: float) -> None:
    given_s = grace_s(own, left)
    assert 0 <= given_s <= own
    assert given_s == 0 or given_s + HURRY_S <= left + 1e-9


class TestWhatRuns:
    ITEM = Assignment(instance_id="ins_1", workload=WORK, present=True)

    def actions(self, view: VmView | None, found: Lapse | None, item: Assignment = ITEM) -> tuple[object, ...]:
        lapses = {} if found is None else {"ins_1": found}
        return converge([item], [view] if view else [], {}, {}, 100.0, lapses=lapses).actions

    def test_goes_on_while_its_lease_does(self) -> None:
        assert self.actions(RUNNING, None) == ()
        assert self.actions(RUNNING, Lapse(reason="not yet")) == ()

    def test_is_stopped_in_the_time_that_is_left(self) -> None:
        assert self.actions(RUNNING, Lapse(reason="late", left_s=15.0)) == (StopVm(vm_id="vm_1", grace_s=7.0),)
        assert self.actions(RUNNING, Lapse(reason="late", left_s=2.0)) == (StopVm(vm_id="vm_1", grace_s=0.0),)

    @pytest.mark.parametrize("phase", [VmPhase.STOPPING, VmPhase.ASLEEP])
    def test_is_left_alone_where_it_stops_already_or_is_on_disk(self, phase: VmPhase) -> None:
        assert self.actions(replace(RUNNING, phase=phase), Lapse(reason="late", left_s=15.0)) == ()

    def test_begins_and_wakes_only_under_a_lease(self) -> None:
        asleep = replace(RUNNING, phase=VmPhase.ASLEEP)
        begun, woken = self.actions(None, None), self.actions(asleep, None)
        assert [type(each) for each in (*begun, *woken)] == [RunVm, ResumeVm]
        for found in (Lapse(reason="not yet"), Lapse(reason="late", left_s=3.0)):
            assert self.actions(None, found) == ()
            assert self.actions(asleep, found) == ()

    def test_comes_again_when_the_lease_does_and_that_is_no_failure_of_its_own(self) -> None:
        ended = replace(RUNNING, phase=VmPhase.ENDED, asked=True, reason_code="fenced")
        late = converge([self.ITEM], [ended], {}, {}, 100.0, lapses={"ins_1": Lapse(reason="late", left_s=0.0)})
        assert late.actions == ()
        assert late.memories["ins_1"].ends == 0
        again = converge([self.ITEM], [ended], late.memories, {}, 200.0)
        assert [type(each) for each in again.actions] == [RunVm]

    def test_attempts_of_before_go_all_the_same(self) -> None:
        older = replace(RUNNING, vm_id="vm_0", attempt=0, phase=VmPhase.ENDED)
        step = converge([self.ITEM], [older, RUNNING], {"ins_1": Memory(attempt=1)}, {}, 1.0, lapses={})
        assert step.actions == (DeleteVm(vm_id="vm_0"),)


def test_a_node_says_that_a_volume_is_leased_only_where_its_host_enforces_it() -> None:
    view = VolumeView(volume_id="vol_1", size_bytes=GIB)
    for order, held, told in (
        (ORDER, ["vol_1"], True),
        (ORDER, [], False),
        (replace(ORDER, lease_s=0.0), ["vol_1"], False),
    ):
        step = converge_volumes([order], [view], {}, (), 1.0, leased=held)
        assert step.observed["vol_1"].leased is told
