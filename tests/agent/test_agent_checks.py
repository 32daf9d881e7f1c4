"""When checks are tried, and what follows from their outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shellwego.agent.checks import Checker, Streak, checks_of, combine, judge, pause
from shellwego.agent.probes import Target
from shellwego.core.apps import Check, CheckKind
from shellwego.core.health import Verdict
from shellwego.drivers.clock.virtual import VirtualClock
from tests.agent.agent_world import FakeProber, workload

CHECK = Check(kind=CheckKind.TCP, port=8080, interval_s=5.0, retries=3)
TARGET = Target(vm_id="vm_1", instance_id="ins_1", address="10.64.0.2")


def after(*outcomes: str, check: Check = CHECK, age: float = 100.0) -> Streak:
    streak = Streak(since=0.0)
    for moment, reason in enumerate(outcomes, start=1):
        streak = judge(streak, check, reason, age, float(moment))
    return streak


def test_the_first_pass_is_health() -> None:
    assert after("refused", "refused", "") == Streak(since=3.0, verdict=Verdict.PASSING)


def test_a_check_that_never_passed_waits_however_often_it_fails() -> None:
    assert after(*["refused"] * 50).verdict is Verdict.WAITING


def test_health_ends_only_with_as_many_failures_in_a_row_as_allowed() -> None:
    assert after("", "x", "x").verdict is Verdict.PASSING
    assert after("", "x", "x", "", "x", "x").verdict is Verdict.PASSING
    assert after("", "x", "x", "x") == Streak(since=4.0, verdict=Verdict.FAILING, failures=3, reason="x")


def test_one_pass_makes_a_failing_check_pass_again() -> None:
    assert after("", "x", "x", "x", "x", "") == Streak(since=6.0, verdict=Verdict.PASSING)


def test_failures_within_the_grace_are_not_counted() -> None:
    patient = Check(kind=CheckKind.TCP, port=1, grace_s=10.0, retries=1)
    assert after("", "x", "x", check=patient, age=9.0).verdict is Verdict.PASSING
    assert after("", "x", check=patient, age=10.0).verdict is Verdict.FAILING


def test_passing_again_does_not_renew_the_health() -> None:
    assert after("", "", "").since == 1.0


def test_pauses_grow_with_the_age_up_to_the_interval() -> None:
    waiting, passing = after("x"), after("")
    assert [pause(waiting, CHECK, age) for age in (0.0, 0.05, 1.0, 20.0, 1000.0)] == [0.005, 0.005, 0.05, 1.0, 5.0]
    assert pause(passing, CHECK, 0.0) == 5.0


def test_an_interval_of_nothing_does_not_spin() -> None:
    assert pause(after(""), Check(kind=CheckKind.TCP, interval_s=0.0), 1.0) >= 0.1


def test_all_checks_of_a_vm_must_pass() -> None:
    good, bad, new = after(""), after("", "x", "x", "x"), after("refused")
    assert combine("vm_1", [good, good]).verdict is Verdict.PASSING
    assert combine("vm_1", [good, new]).verdict is Verdict.WAITING
    assert combine("vm_1", [good, new]).reason == "refused"
    assert combine("vm_1", [bad, new]).verdict is Verdict.FAILING


def test_without_checks_a_connection_to_the_port_is_the_check() -> None:
    assert checks_of(workload(port=8080)) == (Check(kind=CheckKind.TCP, port=8080),)
    assert checks_of(workload(port=0)) == ()


def test_a_check_without_a_port_uses_that_of_the_service_and_those_of_other_processes_are_not_tried() -> None:
    mine, other = Check(kind=CheckKind.HTTP), Check(kind=CheckKind.HTTP, process="worker")
    assert checks_of(workload(port=80, checks=(mine, other))) == (Check(kind=CheckKind.HTTP, port=80),)


class Scene:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.prober = FakeProber(self.clock)
        self.changes = 0
        self.checker = Checker(self.clock, self.prober, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def check(self, *checks: Check, adopted: bool = False) -> None:
        self.checker.sync({"vm_1": (TARGET, checks)}, adopted=adopted)

    def verdict(self) -> Verdict:
        return self.checker.health["vm_1"].verdict


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.checker.close()


async def test_a_vm_that_has_started_is_tried_at_once(scene: Scene) -> None:
    scene.check(CHECK)
    await scene.clock.advance(0.0)
    assert scene.verdict() is Verdict.PASSING
    assert scene.changes == 1


@pytest.mark.parametrize("ready_after", [0.05, 0.5, 3.0, 40.0])
async def test_waiting_for_the_next_try_costs_a_cold_start_little(scene: Scene, ready_after: float) -> None:
    scene.prober.reason = "refused"
    scene.check(CHECK)
    await scene.clock.advance(ready_after)
    scene.prober.reason = ""
    await scene.clock.until(lambda: scene.verdict() is Verdict.PASSING)
    assert scene.clock.monotonic() - ready_after <= max(0.006, ready_after * 0.05)


async def test_a_slow_starter_is_not_hammered(scene: Scene) -> None:
    scene.prober.reason = "refused"
    scene.check(CHECK)
    await scene.clock.advance(60)
    assert len(scene.prober.tries) < 160


async def test_the_same_news_is_told_once(scene: Scene) -> None:
    scene.prober.reason = "refused"
    scene.check(CHECK)
    await scene.clock.advance(10)
    assert scene.changes == 1


async def test_a_vm_that_is_gone_is_checked_no_more(scene: Scene) -> None:
    scene.check(CHECK)
    await scene.clock.advance(1)
    scene.checker.sync({}, adopted=False)
    tries = len(scene.prober.tries)
    await scene.clock.advance(60)
    assert len(scene.prober.tries) == tries
    assert scene.checker.health == {}


async def test_a_check_that_hangs_holds_up_no_other(scene: Scene) -> None:
    async def probe(target: Target, check: Check, connect_s: float) -> str:
        if check.kind is CheckKind.HTTP:
            await asyncio.Event().wait()
        return ""

    scene.prober.probe = probe  # type: ignore[method-assign]
    hanging = Target(vm_id="vm_2", instance_id="ins_2", address="10.64.0.3")
    http = Check(kind=CheckKind.HTTP, port=80)
    scene.checker.sync({"vm_2": (hanging, (http,)), "vm_1": (TARGET, (CHECK,))}, adopted=False)
    await scene.clock.advance(1)
    assert scene.checker.health["vm_1"].verdict is Verdict.PASSING
    assert scene.checker.health["vm_2"].verdict is Verdict.WAITING


async def test_an_adopted_vm_is_unsettled_until_its_first_pass(scene: Scene) -> None:
    scene.check(CHECK, adopted=True)
    assert scene.checker.unsettled() == {"ins_1"}
    await scene.clock.advance(0.02)
    assert scene.checker.unsettled() == frozenset()
    assert scene.changes == 1


async def test_an_adopted_vm_is_judged_at_its_interval_and_not_in_a_hurry(scene: Scene) -> None:
    scene.prober.reason = "refused"
    scene.check(CHECK, adopted=True)
    await scene.clock.advance(9)
    assert scene.checker.unsettled() == {"ins_1"}
    await scene.clock.advance(2)
    assert scene.checker.unsettled() == frozenset()
    assert len(scene.prober.tries) == 3
