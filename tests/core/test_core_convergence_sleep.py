"""The agent's decisions about sleep, and about memories that come from another node."""

from __future__ import annotations

from shellwego.core.attempts import FETCH_AGAIN_S, End, unfetched
from shellwego.core.convergence import FetchVm, ResumeVm, RunVm, StopVm, SuspendVm, vm_id
from shellwego.core.health import Verdict
from shellwego.core.instances import MEMORY_LOST, Phase
from shellwego.core.vms import VmPhase, VmView
from tests.core.convergence_host import WORKLOAD, Host


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
