"""The agent's decisions: looks in, actions and observations out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.apps import RestartMode, RestartPolicy
from shellwego.core.assignments import Assignment, Workload
from shellwego.core.attempts import BACKOFF_S, FETCH_AGAIN_S, FORGET_S, End, Memory, hindered, refused, unfetched
from shellwego.core.convergence import (
    Action,
    DeleteVm,
    FetchVm,
    RestrictVm,
    ResumeVm,
    RunVm,
    ScreenVm,
    StopVm,
    SuspendVm,
    converge,
    vm_id,
)
from shellwego.core.destinations import Destination
from shellwego.core.health import Health, Verdict
from shellwego.core.ids import is_id
from shellwego.core.instances import MEMORY_LOST, PHASE_MOVES, TERMINAL, Observed, Phase
from shellwego.core.openings import Ingress, Opening
from shellwego.core.vms import VmPhase, VmView

WORKLOAD = Workload(
    organization_id="org",
    project_id="prj",
    network_id="net",
    app_id="app",
    app_name="shop",
    process="web",
    release=1,
    image_digest="sha256:a",
    command=None,
    entrypoint=None,
    env={},
    memory_bytes=1,
    cpu_milli=1,
    vcpus=1,
    disk_bytes=1,
    port=8080,
    checks=(),
    restart=RestartPolicy(),
    stop_signal=None,
    stop_grace_s=7.0,
)


@dataclass(slots=True)
class Host:
    """A host on which orders are carried out at once, and time is ours."""

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    now: float = 100.0
    present: bool = True
    asleep: bool = False
    memory_of: str = ""
    egress: tuple[Destination, ...] | None = None
    ingress: Ingress = None
    assigned: bool = True
    vms: dict[str, VmView] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    health: dict[str, Health] = field(default_factory=dict)
    started: list[tuple[float, int]] = field(default_factory=list)
    wake_at: float | None = None
    observed: dict[str, Observed] = field(default_factory=dict)

    def look(self) -> tuple[Action, ...]:
        workload = replace(WORKLOAD, restart=self.restart, egress=self.egress, ingress=self.ingress)
        item = Assignment(
            instance_id="ins",
            workload=workload,
            present=self.present,
            asleep=self.asleep,
            memory_of=self.memory_of,
        )
        step = converge((item,) if self.assigned else (), self.vms.values(), self.memories, self.health, self.now)
        self.memories, self.observed, self.wake_at = dict(step.memories), dict(step.observed), step.wake_at
        return step.actions

    @property
    def seen(self) -> Observed:
        return self.observed["ins"]

    def act(self) -> tuple[Action, ...]:
        """Look, and carry the orders out."""
        actions = self.look()
        for action in actions:
            match action:
                case RunVm():
                    self.started.append((self.now, action.attempt))
                    self.vms[action.vm_id] = VmView(
                        vm_id=action.vm_id,
                        instance_id="ins",
                        attempt=action.attempt,
                        phase=VmPhase.RUNNING,
                        address="10.64.0.2",
                        egress=action.workload.egress,
                        identity=action.workload.app_id,
                        ingress=action.workload.ingress,
                    )
                case RestrictVm(vm_id=id_):
                    self.vms[id_] = replace(self.vms[id_], egress=action.egress)
                case ScreenVm(vm_id=id_):
                    self.vms[id_] = replace(self.vms[id_], identity=action.identity, ingress=action.ingress)
                case StopVm(vm_id=id_):
                    self.vms[id_] = replace(self.vms[id_], phase=VmPhase.STOPPING, asked=True)
                case DeleteVm(vm_id=id_):
                    del self.vms[id_]
        return actions

    @property
    def vm(self) -> VmView:
        return max(self.vms.values(), key=lambda vm: vm.attempt)

    def end(self, exit_code: int | None = 1, **changes: object) -> None:
        ended = replace(
            self.vm,
            phase=VmPhase.ENDED,
            exit_code=exit_code,
            reason=f"the workload ended with exit code {exit_code}",
            log_tail=("boom",),
        )
        self.vms[ended.vm_id] = replace(ended, **changes)  # type: ignore[arg-type]

    def become(self, phase: VmPhase) -> None:
        self.vms[self.vm.vm_id] = replace(self.vm, phase=phase)

    def hinder(self, end: End) -> None:
        """As if the engine had refused the last order to sleep or to wake."""
        self.memories["ins"] = hindered(self.memories["ins"], end, self.now)

    def check(self, verdict: Verdict, reason: str = "") -> None:
        self.health[self.vm.vm_id] = Health(vm_id=self.vm.vm_id, verdict=verdict, reason=reason, since=self.now)

    def run_until_quiet(self, exit_code: int | None = 1) -> None:
        """Each attempt ends at once, until nothing more is tried."""
        while self.memories.get("ins", Memory()).outcome is None:
            self.act()
            if self.vms and self.vm.phase is VmPhase.RUNNING:
                self.end(exit_code)
            elif self.wake_at is not None:
                self.now = self.wake_at


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


def test_a_vm_falls_asleep_and_wakes_by_one_order_each_and_in_between_nothing_is_told() -> None:
    host = Host(asleep=True)
    host.act()
    assert host.look() == (SuspendVm(vm_id=host.vm.vm_id, instance_id="ins"),)
    host.become(VmPhase.SUSPENDING)
    assert (host.look(), host.observed) == ((), {})
    host.become(VmPhase.ASLEEP)
    assert (host.look(), host.seen.phase, host.seen.address) == ((), Phase.ASLEEP, "")
    host.asleep = False
    assert host.look() == (ResumeVm(vm_id=host.vm.vm_id, instance_id="ins"),)
    host.become(VmPhase.RESUMING)
    assert (host.look(), host.observed) == ((), {})


def test_a_suspend_that_failed_is_told_and_not_tried_again_until_it_is_asked_for_anew() -> None:
    host = Host(asleep=True)
    host.act()
    host.check(Verdict.PASSING)
    host.hinder(End(reason="cannot", reason_code="suspend-failed"))
    assert host.look() == ()
    assert (host.seen.phase, host.seen.reason, host.seen.reason_code) == (Phase.HEALTHY, "cannot", "suspend-failed")
    host.asleep = False
    assert (host.look(), host.seen.reason_code) == ((), "")
    host.asleep = True
    assert [type(action) for action in host.look()] == [SuspendVm]


def test_a_resume_is_tried_again_and_a_memory_that_is_lost_makes_room_for_the_next_attempt() -> None:
    host = Host(asleep=True)
    host.act()
    host.become(VmPhase.ASLEEP)
    host.asleep = False
    host.hinder(End(reason="busy", reason_code="resume-failed"))
    assert (host.look(), host.seen.phase, host.seen.reason) == ((), Phase.ASLEEP, "busy")
    assert host.wake_at is not None
    host.now = host.wake_at
    assert [type(action) for action in host.look()] == [ResumeVm]
    host.hinder(End(reason="damaged", reason_code="resume-failed", permanent=True))
    assert host.act() == (StopVm(vm_id=vm_id("ins", 1), grace_s=0),)
    host.end(None, asked=True)
    host.act()
    host.now += 1
    assert [type(action) for action in host.act()] == [RunVm]
    host.look()
    assert (host.seen.reason, host.seen.reason_code, host.seen.ends) == ("damaged", "memory-lost", 0)


def arriving() -> Host:
    """A host whose instance is to go on with the memory of another."""
    return Host(asleep=True, memory_of="ins_old")


def fetch_fails(host: Host, end: End, *, temporary: bool) -> None:
    host.memories["ins"] = unfetched(host.memories["ins"], end, host.now, temporary=temporary)


def test_what_is_to_go_on_with_a_memory_is_fetched_and_never_run() -> None:
    host = arriving()
    [order] = host.look()
    assert order == FetchVm(vm_id=vm_id("ins", 1), instance_id="ins", attempt=1, workload=WORKLOAD)
    assert (host.seen.phase, host.seen.detail) == (Phase.STARTING, "memory")
    assert host.look() == (order,), "it is asked for again until it is there"
    host.vms[order.vm_id] = VmView(
        vm_id=order.vm_id, instance_id="ins", attempt=1, phase=VmPhase.ASLEEP, identity="app"
    )
    assert host.look() == ()
    assert host.seen.phase is Phase.ASLEEP
    host.asleep, host.memory_of = False, ""
    assert host.look() == (ResumeVm(vm_id=order.vm_id, instance_id="ins"),)


def test_a_memory_that_may_come_later_is_asked_for_a_few_times_and_then_given_up() -> None:
    host = arriving()
    for pause in FETCH_AGAIN_S:
        assert [type(action) for action in host.look()] == [FetchVm]
        fetch_fails(host, End(reason="the node is away", reason_code="stream-closed"), temporary=True)
        assert host.look() == ()
        assert (host.seen.phase, host.seen.reason) == (Phase.STARTING, "the node is away")
        assert host.wake_at == host.now + pause
        host.now += pause
    host.look()
    fetch_fails(host, End(reason="the node is away", reason_code="stream-closed"), temporary=True)
    host.now += 1000
    assert host.look() == ()
    assert (host.seen.phase, host.seen.reason_code) == (Phase.STARTING, MEMORY_LOST)


def test_what_gets_no_memory_begins_anew_only_when_it_is_told_so() -> None:
    host = arriving()
    host.look()
    fetch_fails(host, End(reason="it is damaged", reason_code="snapshot-damaged"), temporary=False)
    assert host.look() == ()
    assert (host.seen.reason, host.seen.reason_code) == ("it is damaged", MEMORY_LOST)
    host.asleep, host.memory_of = False, ""
    assert [type(action) for action in host.act()] == [RunVm]
    host.check(Verdict.PASSING)
    host.look()
    assert (host.seen.phase, host.seen.reason, host.seen.attempt) == (Phase.HEALTHY, "", 1)


def test_what_had_its_memory_and_ended_does_not_begin_anew_by_itself() -> None:
    host = arriving()
    id_ = vm_id("ins", 1)
    host.vms[id_] = VmView(vm_id=id_, instance_id="ins", attempt=1, phase=VmPhase.ASLEEP, identity="app")
    host.look()
    host.end(None)
    host.now += 1000
    assert host.look() == ()
    assert (host.seen.phase, host.seen.reason_code) == (Phase.STARTING, MEMORY_LOST)


def test_what_sleeps_is_stopped_like_anything_else() -> None:
    host = Host(asleep=True)
    host.act()
    host.become(VmPhase.ASLEEP)
    host.present = False
    assert host.act() == (StopVm(vm_id=vm_id("ins", 1), grace_s=7.0),)


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
