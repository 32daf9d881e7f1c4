"""The agent's decisions: looks in, actions and observations out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.apps import RestartMode, RestartPolicy
from shellwego.core.attempts import BACKOFF_S, FORGET_S, PUT_OFF_S, End, refused
from shellwego.core.convergence import DeleteVm, RestrictVm, ResumeVm, RunVm, ScreenVm, StopVm, converge, vm_id
from shellwego.core.destinations import Destination
from shellwego.core.health import Verdict
from shellwego.core.ids import is_id
from shellwego.core.instances import PHASE_MOVES, TERMINAL, Phase
from shellwego.core.openings import Opening
from shellwego.core.vms import VmPhase, VmView
from tests.core.convergence_host import WORKLOAD, Host


def test_an_assigned_instance_gets_its_first_attempt() -> None:
    host = Host()
    assert host.act() == (RunVm(vm_id=vm_id("ins", 1), instance_id="ins", attempt=1, workload=WORKLOAD),)
    assert host.seen.phase is Phase.STARTING


def test_an_order_that_is_not_seen_yet_is_given_again_for_the_same_vm() -> None:
    host = Host()
    assert host.look() == host.look()


def test_a_vm_id_has_the_form_of_one_and_differs_by_attempt() -> None:
    assert is_id("vm", vm_id("ins", 1))
    assert vm_id("ins", 1) != vm_id("ins", 2) != vm_id("other", 2)


def test_a_running_vm_is_left_alone() -> None:
    host = Host()
    host.act()
    assert host.look() == ()


def test_three_ends_of_a_workload_that_exits_at_once_cost_little_beside_the_boots() -> None:
    host = Host()
    host.run_until_quiet()
    assert [attempt for _, attempt in host.started] == [1, 2, 3]
    assert host.now - 100.0 == pytest.approx(1.2)
    assert host.seen.phase is Phase.FAILED
    assert (host.seen.ends, host.seen.exit_code, host.seen.log_tail) == (3, 1, ("boom",))
    assert host.seen.address == ""


def test_an_instance_has_the_address_of_a_vm_only_while_that_lives() -> None:
    host = Host()
    host.act()
    host.look()
    assert host.seen.address == "10.64.0.2"
    host.end()
    host.look()
    assert (host.seen.phase, host.seen.address) == (Phase.STARTING, "")


def test_a_failed_instance_is_tried_no_more_and_keeps_its_vm_as_evidence() -> None:
    host = Host()
    host.run_until_quiet()
    host.now += 1e6
    assert host.act() == ()
    assert len(host.vms) == 1
    assert host.wake_at is None


def test_back_off_grows_to_its_cap() -> None:
    host = Host(restart=RestartPolicy(retries=12))
    host.run_until_quiet()
    times = [time for time, _ in host.started]
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == pytest.approx([*BACKOFF_S, *[BACKOFF_S[-1]] * (11 - len(BACKOFF_S))])


def test_a_pause_of_its_own_does_not_grow() -> None:
    host = Host(restart=RestartPolicy(retries=4, backoff_s=7.0))
    host.run_until_quiet()
    times = [time for time, _ in host.started]
    assert [after - before for before, after in pairwise(times)] == pytest.approx([7.0, 7.0, 7.0])


def test_the_ended_attempt_stays_until_the_next_one_is_there() -> None:
    host = Host()
    host.act()
    host.end()
    host.act()
    assert host.seen.detail == "back-off"
    assert "exit code 1" in host.seen.reason
    host.now += 0.2
    host.act()
    assert len(host.vms) == 2
    assert host.act() == (DeleteVm(vm_id=vm_id("ins", 1)),)


def test_an_end_is_counted_once_however_often_it_is_seen() -> None:
    host = Host()
    host.act()
    host.end()
    for _ in range(5):
        host.look()
    assert host.seen.ends == 1


def test_five_minutes_of_health_make_earlier_ends_forgotten() -> None:
    host = Host()
    host.act()
    host.end()
    host.act()
    host.now += 0.2
    host.act()
    host.check(Verdict.PASSING)
    host.act()
    assert host.seen.ends == 1
    assert host.wake_at == host.now + FORGET_S
    host.now += FORGET_S
    host.act()
    assert host.seen.ends == 0


@pytest.mark.parametrize("mode", RestartMode)
def test_what_cannot_begin_because_something_does_not_answer_is_tried_until_it_does(mode: RestartMode) -> None:
    host = Host(restart=RestartPolicy(mode=mode))
    for _ in range(len(PUT_OFF_S) + 3):
        host.act()
        host.end(None, unavailable=True, reason="no answer from the server")
        host.act()
        assert (host.seen.phase, host.seen.detail, host.seen.ends) == (Phase.STARTING, "back-off", 0)
        assert host.seen.reason == "no answer from the server"
        assert host.wake_at is not None
        host.now = host.wake_at
    times = [time for time, _ in host.started]
    assert [after - before for before, after in pairwise(times)] == pytest.approx([*PUT_OFF_S, *[PUT_OFF_S[-1]] * 2])
    host.act()
    host.end(1)
    host.act()
    assert host.seen.ends == 1, "an end of what began counts as ever"
    assert (host.memories["ins"].outcome is Phase.FAILED) is (mode is RestartMode.NEVER)


def test_what_never_begins_has_failed_in_the_end_so_that_another_host_is_tried() -> None:
    """It may be this host whose way or disk does not answer."""
    host = Host()
    host.act()
    began = host.now
    while host.seen.phase is not Phase.FAILED:
        host.end(None, unavailable=True)
        host.act()
        host.now = host.wake_at or host.now
        host.act()
    assert 480 <= host.now - began <= 720


def test_the_pause_of_what_cannot_begin_is_short_again_once_it_has_run() -> None:
    host = Host()
    for _ in range(4):
        host.act()
        host.end(None, unavailable=True)
        host.act()
        host.now += PUT_OFF_S[-1]
    host.act()
    host.act()
    host.end(1)
    host.act()
    host.now += BACKOFF_S[0]
    host.act()
    host.end(None, unavailable=True)
    host.act()
    assert host.wake_at == host.now + PUT_OFF_S[0]


def test_a_permanent_fault_fails_at_once() -> None:
    host = Host()
    host.act()
    host.end(None, permanent=True, reason="no such command")
    host.act()
    assert host.seen.phase is Phase.FAILED
    assert host.seen.reason == "no such command"


@pytest.mark.parametrize(
    ("mode", "exit_code", "outcome"),
    [
        (RestartMode.ALWAYS, 0, None),
        (RestartMode.ALWAYS, 1, None),
        (RestartMode.ON_FAILURE, 0, Phase.STOPPED),
        (RestartMode.ON_FAILURE, 1, None),
        (RestartMode.ON_FAILURE, None, None),
        (RestartMode.NEVER, 0, Phase.STOPPED),
        (RestartMode.NEVER, 1, Phase.FAILED),
        (RestartMode.NEVER, None, Phase.FAILED),
    ],
)
def test_what_follows_an_end_is_the_restart_policy_s_to_say(
    mode: RestartMode, exit_code: int | None, outcome: Phase | None
) -> None:
    host = Host(restart=RestartPolicy(mode=mode))
    host.act()
    host.end(exit_code)
    host.act()
    assert host.memories["ins"].outcome is outcome
    assert host.seen.phase is (outcome or Phase.STARTING)


def test_a_vm_that_somebody_else_stopped_is_started_again_without_counting() -> None:
    host = Host()
    host.act()
    host.end(143, asked=True)
    host.act()
    assert host.seen.ends == 0
    host.now += 0.2
    assert [type(action) for action in host.act()] == [RunVm]


def test_what_is_to_run_once_does_not_run_again_after_somebody_else_stopped_it() -> None:
    host = Host(restart=RestartPolicy(mode=RestartMode.NEVER))
    host.act()
    host.end(143, asked=True)
    host.act()
    assert host.seen.phase is Phase.FAILED
    host.now += 60.0
    assert host.act() == ()


def test_a_refused_order_is_an_attempt_that_ended() -> None:
    host = Host()
    (order,) = host.look()
    assert isinstance(order, RunVm)
    memory = refused(host.memories["ins"], order.attempt, order.workload, End(reason="no memory left"), host.now)
    host.memories["ins"] = memory
    assert host.look() == ()
    assert host.seen.reason == "no memory left"
    host.now += 0.2
    (again,) = host.look()
    assert isinstance(again, RunVm)
    assert again.attempt == 2


def test_an_instance_to_be_absent_is_stopped_with_its_grace_then_removed() -> None:
    host = Host()
    host.act()
    host.present = False
    assert host.act() == (StopVm(vm_id=vm_id("ins", 1), grace_s=7.0),)
    assert host.seen.phase is Phase.STOPPING
    assert host.act() == ()
    host.end(143)
    assert host.act() == (DeleteVm(vm_id=vm_id("ins", 1)),)
    assert host.seen.phase is Phase.STOPPED
    assert host.act() == ()
    assert host.seen.phase is Phase.STOPPED


def test_an_end_on_the_way_out_is_no_failure() -> None:
    host = Host()
    host.act()
    host.present = False
    host.end(1)
    host.act()
    assert host.seen.ends == 0


def test_what_no_assignment_names_is_stopped_and_removed() -> None:
    host = Host()
    host.act()
    host.assigned = False
    assert [type(action) for action in host.act()] == [StopVm]
    host.end(143)
    assert [type(action) for action in host.act()] == [DeleteVm]


def test_a_vm_without_an_instance_is_somebody_else_s() -> None:
    foreign = VmView(vm_id="vm_x", instance_id="", attempt=1, phase=VmPhase.RUNNING)
    assert converge((), (foreign,), {}, {}, 0.0).actions == ()


def test_a_restarted_agent_goes_on_from_the_attempt_that_it_finds() -> None:
    host = Host()
    host.run_until_quiet()
    host.memories = {}
    host.act()
    assert host.seen.ends == 1
    host.now += 1.0
    (order,) = [action for action in host.act() if isinstance(action, RunVm)]
    assert order.attempt == 4


def test_an_adopted_vm_is_not_started_twice() -> None:
    host = Host()
    host.act()
    host.memories = {}
    assert host.act() == ()
    assert host.seen.attempt == 1


@pytest.mark.parametrize(
    ("phase", "detail", "shown"),
    [(VmPhase.PREPARING, "image", "image"), (VmPhase.STARTING, "", "starting")],
)
def test_a_vm_on_its_way_says_what_it_does(phase: VmPhase, detail: str, shown: str) -> None:
    host = Host()
    host.act()
    host.vms[host.vm.vm_id] = replace(host.vm, phase=phase, detail=detail)
    host.act()
    assert (host.seen.phase, host.seen.detail) == (Phase.STARTING, shown)


def test_checks_decide_on_health() -> None:
    host = Host()
    host.act()
    host.act()
    assert (host.seen.phase, host.seen.detail) == (Phase.STARTING, "checks")
    host.check(Verdict.WAITING, "connection refused")
    host.act()
    assert (host.seen.phase, host.seen.reason) == (Phase.STARTING, "connection refused")
    host.check(Verdict.PASSING)
    host.act()
    assert (host.seen.phase, host.seen.reason, host.seen.address) == (Phase.HEALTHY, "", "10.64.0.2")
    host.check(Verdict.FAILING, "status 500")
    host.act()
    assert (host.seen.phase, host.seen.reason) == (Phase.UNHEALTHY, "status 500")


EVENTS = st.lists(st.sampled_from(["look", "end", "clean", "pass", "fail", "wait", "absent", "forget"]), max_size=40)


@given(events=EVENTS, mode=st.sampled_from(list(RestartMode)))
def test_what_is_observed_moves_as_the_table_allows(events: list[str], mode: RestartMode) -> None:
    host = Host(restart=RestartPolicy(mode=mode))
    before = Phase.ASSIGNED
    for event in events:
        alive = bool(host.vms) and host.vm.phase is VmPhase.RUNNING
        if event == "absent":
            host.present = False
        elif event == "forget":
            host.memories = {}
        elif event == "wait":
            host.now += 1.0
        elif alive and event in ("end", "clean"):
            host.end(0 if event == "clean" else 1)
        elif alive and event in ("pass", "fail"):
            host.check(Verdict.PASSING if event == "pass" else Verdict.FAILING)
        host.act()
        now = host.seen.phase
        if before in TERMINAL:
            return  # the control plane assigns it no more
        assert now is before or now in PHASE_MOVES[before], (before, now)
        before = now


@given(events=EVENTS)
def test_there_is_never_more_than_one_vm_alive_of_an_instance(events: list[str]) -> None:
    host = Host()
    for event in events:
        if event in ("end", "clean") and host.vms and host.vm.phase is VmPhase.RUNNING:
            host.end()
        elif event == "forget":
            host.memories = {}
        else:
            host.now += 0.3
        host.act()
        assert sum(vm.phase is not VmPhase.ENDED for vm in host.vms.values()) <= 1
        assert len(host.vms) <= 2


def test_what_a_vm_may_reach_is_changed_while_it_lives_and_before_it_wakes() -> None:
    host = Host()
    host.act()
    assert host.act() == ()
    host.egress = (Destination(network="203.0.113.0/24"),)
    assert host.act() == (RestrictVm(vm_id=host.vm.vm_id, egress=host.egress),)
    assert host.act() == ()
    host.become(VmPhase.ASLEEP)
    host.egress = None
    assert [type(action) for action in host.look()] == [RestrictVm, ResumeVm]
    host.end()
    assert RestrictVm not in {type(action) for action in host.look()}


def test_what_may_be_opened_to_a_vm_is_changed_while_it_lives_and_before_it_wakes() -> None:
    host = Host()
    host.act()
    host.ingress = (Opening(identity="app_web"),)
    assert host.act() == (ScreenVm(vm_id=host.vm.vm_id, identity=WORKLOAD.app_id, ingress=host.ingress),)
    assert host.act() == ()
    host.become(VmPhase.ASLEEP)
    host.ingress = None
    assert [type(action) for action in host.look()] == [ScreenVm, ResumeVm]
    host.vms[host.vm.vm_id] = replace(host.vm, identity="", ingress=None)  # as an older version made it
    assert host.look()[0] == ScreenVm(vm_id=host.vm.vm_id, identity=WORKLOAD.app_id, ingress=None)
