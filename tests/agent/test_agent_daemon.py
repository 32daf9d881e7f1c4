"""The agent as a whole, on memory drivers and virtual time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shellwego.core.apps import RestartMode, RestartPolicy
from shellwego.core.errors import UnavailableError
from shellwego.core.nodes import Offer
from shellwego.drivers.uplink.memory import LinkState
from shellwego.ports.engine import VmOrder, VmView
from tests.agent.agent_world import NODE, workload, world


async def test_an_assigned_instance_is_started_checked_and_reported_healthy(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"), timeout=0.5)
        assert await one.vms() == {"ins_1": (1, "running")}
        assert one.control.observed["ins_1"].address.startswith("10.64.")


async def test_what_happens_on_the_way_is_reported(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.prober.reason = "connection refused"
        await one.control.assign("ins_1", workload())
        await one.clock.advance(0.5)
        one.prober.reason = ""
        await one.clock.until(one.control.is_("healthy"))
        told = [report.instances["ins_1"] for report in one.control.reports if "ins_1" in report.instances]
        assert [(seen.phase.value, seen.detail, seen.reason) for seen in told] == [
            ("starting", "image", ""),
            ("starting", "checks", "connection refused"),
            ("healthy", "", ""),
        ]


async def test_a_start_that_is_quick_is_not_told_in_all_its_steps(tmp_path: Path) -> None:
    """Each report costs the control plane a look, just when the start needs the processors."""
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        told = [report.instances["ins_1"] for report in one.control.reports if "ins_1" in report.instances]
        assert [seen.phase.value for seen in told] == ["starting", "healthy"]


async def test_how_far_a_start_has_come_is_told_after_a_moment(tmp_path: Path) -> None:
    """Also where nothing else happens that is to be told."""
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload(port=0))
        await one.clock.until(one.control.is_("starting"))
        await one.clock.until(lambda: one.control.observed["ins_1"].detail == "checks", timeout=0.5)
        assert one.control.observed["ins_1"].address


async def test_a_node_tells_what_its_operator_offers_of_the_host(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        whole = one.control.reports[-1].facts
        await one.kill()
        one.offer = Offer(cpu_overcommit=2, reserved_memory_bytes=whole.memory_bytes // 2)
        one.control.reports.clear()
        one.start()
        await one.clock.until(lambda: bool(one.control.reports))
        told = one.control.reports[-1].facts
        assert (told.cpu_overcommit, told.memory_bytes) == (2, whole.memory_bytes // 2)


async def test_a_lost_hint_costs_latency_only(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.bus.close()
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"), timeout=3)


async def test_an_idle_node_beats_every_two_seconds_and_says_nothing_twice(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        before = len(one.control.reports)
        await one.clock.advance(20)
        beats = one.control.reports[before:]
        assert 9 <= len(beats) <= 10
        assert all(not beat.instances for beat in beats)


async def test_a_healthy_instance_that_is_asked_to_stop_stops_and_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload(stop_grace_s=7.0))
        await one.clock.until(one.control.is_("healthy"))
        await one.control.assign("ins_1", present=False)
        await one.clock.until(one.control.is_("stopped"), timeout=1)
        await one.clock.advance(3)
        assert await one.vms() == {}
        phases = [report.instances["ins_1"].phase for report in one.control.reports if "ins_1" in report.instances]
        assert phases[-2:] == ["stopping", "stopped"]


async def test_what_no_assignment_names_is_stopped_and_removed(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.control.items.clear()
        await one.control.hint()
        await one.clock.advance(5)
        assert await one.vms() == {}


async def test_a_workload_that_crashes_is_tried_three_times_and_then_failed_with_its_last_lines(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload("exit", "3"))
        await one.clock.until(one.control.is_("failed"), timeout=15)
        seen = one.control.observed["ins_1"]
        assert (seen.attempt, seen.ends, seen.exit_code, seen.log_tail) == (3, 3, 3, ("hello",))
        assert "exit code 3" in seen.reason
        await one.clock.advance(60)
        assert await one.vms() == {"ins_1": (3, "ended")}


async def test_a_vm_whose_process_dies_is_replaced_by_the_next_attempt(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.engine.die(await one.vm_id())
        await one.clock.until(one.control.is_("starting"), timeout=0.1)
        assert "ended unexpectedly" in one.control.observed["ins_1"].reason
        await one.clock.until(one.control.is_("healthy"), timeout=3)
        assert await one.vms() == {"ins_1": (2, "running")}


@pytest.mark.parametrize(
    ("mode", "command", "outcome", "attempts"),
    [
        (RestartMode.NEVER, ("exit", "1"), "failed", 1),
        (RestartMode.NEVER, ("exit", "0"), "stopped", 1),
        (RestartMode.ON_FAILURE, ("exit", "0"), "stopped", 1),
        (RestartMode.ON_FAILURE, ("exit", "1"), "failed", 2),
        (RestartMode.ALWAYS, ("exit", "0"), "failed", 2),
    ],
)
async def test_the_restart_policy_decides_what_follows_an_end(
    tmp_path: Path, mode: RestartMode, command: tuple[str, ...], outcome: str, attempts: int
) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload(*command, restart=RestartPolicy(mode=mode, retries=2)))
        await one.clock.until(one.control.is_(outcome), timeout=15)
        assert one.control.observed["ins_1"].attempt == attempts


async def test_a_boot_that_fails_counts_as_an_end_and_heals(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.engine.boots_fail_with = "the guest did not answer"
        await one.control.assign("ins_1", workload())
        await one.clock.advance(1)
        assert "did not answer" in one.control.observed["ins_1"].reason
        one.engine.boots_fail_with = ""
        await one.clock.until(one.control.is_("healthy"), timeout=5)


async def test_a_vm_that_the_engine_cannot_begin_yet_is_no_attempt(tmp_path: Path) -> None:
    """Its hypervisor is still being probed, as after a boot of the host."""
    async with world(tmp_path) as one:
        ready = False
        run = one.engine.run

        async def probing(order: VmOrder) -> None:
            if not ready:
                raise UnavailableError("backend-probing", "the hypervisor is still being probed")
            await run(order)

        one.engine.run = probing  # type: ignore[method-assign]
        await one.control.assign("ins_1", workload(restart=RestartPolicy(mode=RestartMode.NEVER)))
        await one.clock.advance(30)
        assert (one.control.phase("ins_1"), one.control.observed["ins_1"].ends) == ("starting", 0)
        ready = True
        await one.clock.until(one.control.is_("healthy"), timeout=5)
        assert one.control.observed["ins_1"].attempt == 1


async def test_an_order_that_the_engine_refuses_is_an_attempt_that_ended(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        refused: list[VmOrder] = []
        run = one.engine.run

        async def refuse_twice(order: VmOrder) -> None:
            if len(refused) < 2:
                refused.append(order)
                raise UnavailableError("no-capacity", "the host has no room")
            await run(order)

        one.engine.run = refuse_twice  # type: ignore[method-assign]
        await one.control.assign("ins_1", workload())
        await one.clock.until(lambda: bool(refused))
        await one.clock.until(one.control.is_("healthy"), timeout=5)
        assert one.control.observed["ins_1"].attempt == 3


async def test_an_instance_that_never_passes_its_check_stays_starting_and_says_why(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.prober.reason = "tcp check on port 8080: connection refused"
        await one.control.assign("ins_1", workload())
        await one.clock.advance(30)
        seen = one.control.observed["ins_1"]
        assert (seen.phase, seen.detail) == ("starting", "checks")
        assert "connection refused" in seen.reason
        assert seen.log_tail == ("hello",)


async def test_a_healthy_instance_whose_check_fails_becomes_unhealthy_and_recovers(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.prober.reason = "status 500"
        await one.clock.until(one.control.is_("unhealthy"), timeout=16)
        assert one.control.observed["ins_1"].reason == "status 500"
        one.prober.reason = ""
        await one.clock.until(one.control.is_("healthy"), timeout=6)
        assert await one.vms() == {"ins_1": (1, "running")}


async def test_a_restarted_agent_adopts_its_vms_and_carries_their_attempts_on(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.engine.die(await one.vm_id())
        await one.clock.until(lambda: one.control.observed["ins_1"].attempt == 2 and one.control.is_("healthy")())
        adopted = await one.vm_id()
        await one.kill()
        await one.clock.advance(600)
        one.start()
        await one.clock.advance(10)
        assert await one.vm_id() == adopted
        assert one.control.observed["ins_1"].attempt == 2
        one.engine.die(adopted)
        await one.clock.advance(5)
        assert await one.vms() == {"ins_1": (3, "running")}


async def test_a_restart_of_the_agent_never_makes_a_healthy_instance_look_otherwise(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        await one.kill()
        before = len(one.control.reports)
        one.prober.reason = "a hiccup"
        one.start()
        await one.clock.advance(6)
        one.prober.reason = ""
        await one.clock.advance(10)
        told = [report for report in one.control.reports[before:]]
        assert {seen.phase.value for report in told for seen in report.instances.values()} == {"healthy"}
        assert [bool(report.instances) for report in told].count(True) == 1


async def test_a_pass_that_no_look_has_weighed_yet_makes_nothing_of_an_adopted_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look that follows it takes its time on a busy host, and a beat goes out meanwhile."""
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        await one.kill()
        before = len(one.control.reports)
        observe, looks = one.engine.observe, itertools.count()

        async def slow() -> tuple[VmView, ...]:
            if next(looks):
                await one.clock.sleep(5)
            return await observe()

        monkeypatch.setattr(one.engine, "observe", slow)
        one.start()
        await one.clock.advance(20)
        told = one.control.reports[before:]
        assert {seen.phase.value for report in told for seen in report.instances.values()} == {"healthy"}


async def test_an_adopted_instance_that_is_broken_is_told_in_the_end(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        await one.kill()
        one.prober.reason = "status 500"
        one.start()
        await one.clock.until(one.control.is_("starting"), timeout=20)


async def test_a_restarted_agent_is_the_same_node_and_its_reports_are_newer(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.clock.advance(10)
        last = one.control.reports[-1].sequence
        await one.kill()
        one.start()
        await one.clock.advance(3)
        assert one.control.registrations[-1].known_node_id == NODE
        assert one.control.registrations[-1].known_epoch == 1
        assert one.control.reports[-1].sequence > last


async def test_a_cut_uplink_stops_nothing_and_crashed_vms_are_still_replaced(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.control.assign("ins_2", workload())
        await one.clock.until(one.control.is_("healthy", "ins_2"))
        one.link.state = LinkState.CUT
        await one.control.assign("ins_1", present=False)
        one.engine.die(await one.vm_id("ins_2"))
        await one.clock.advance(600)
        assert await one.vms() == {"ins_1": (1, "running"), "ins_2": (2, "running")}
        one.link.state = LinkState.UP
        await one.clock.until(one.control.is_("stopped"), timeout=5)
        assert one.control.observed["ins_2"].attempt == 2


async def test_an_uplink_that_is_cut_for_long_is_told_in_few_lines_and_when_it_is_over(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.clock.advance(1)
        with capture_logs() as lines:
            one.link.state = LinkState.CUT
            await one.clock.advance(300)
            one.link.state = LinkState.UP
            await one.clock.advance(30)
    for step in ("_report", "_fetch"):
        told = [line for line in lines if line["event"] == "agent.step_failed" and line["step"] == step]
        assert 5 <= len(told) <= 6
        (over,) = [line for line in lines if line["event"] == "agent.step_works_again" and line["step"] == step]
        assert over["failures"] > 50


async def test_a_restart_without_the_control_plane_touches_no_vm(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        await one.kill()
        one.link.state = LinkState.CUT
        one.start()
        await one.clock.advance(600)
        assert await one.vms() == {"ins_1": (1, "running")}
        one.link.state = LinkState.UP
        await one.clock.advance(5)
        assert await one.vms() == {"ins_1": (1, "running")}
        assert one.control.phase("ins_1") == "healthy"


async def test_a_report_whose_answer_was_lost_is_told_again(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.link.state = LinkState.ANSWERS_LOST
        one.engine.die(await one.vm_id())
        await one.clock.advance(10)
        before = len(one.control.reports)
        one.link.state = LinkState.UP
        await one.clock.advance(10)
        told = [report.instances for report in one.control.reports[before:] if report.instances]
        assert [(seen["ins_1"].attempt, seen["ins_1"].phase) for seen in told] == [(2, "healthy")]


async def test_a_hanging_uplink_holds_up_no_vm(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.link.delay_s = 1000.0
        await one.clock.advance(5)
        one.engine.die(await one.vm_id())
        await one.clock.advance(2)
        assert await one.vms() == {"ins_1": (2, "running")}


async def test_a_raised_epoch_is_taken_over_and_everything_told_again(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.control.epoch = 5
        one.control.observed.clear()
        await one.clock.until(one.control.is_("healthy"), timeout=5)
        assert one.control.observed["ins_1"].epoch == 5
        assert any(report.instances and report.epoch == 5 for report in one.control.reports)


async def test_the_answer_to_a_report_tells_of_a_raised_epoch_without_waiting_for_the_timer(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        await one.control.hint()
        await one.clock.advance(1.0)
        one.control.epoch = 5
        one.engine.die(await one.vm_id())
        await one.clock.advance(0.1)
        assert one.control.reports[-1].epoch == 5


async def test_assignments_of_an_older_epoch_are_refused_also_after_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.control.epoch = 5
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.control.epoch = 4
        await one.control.assign("ins_1", present=False)
        await one.clock.advance(30)
        assert await one.vms() == {"ins_1": (1, "running")}
        await one.kill()
        one.start()
        await one.clock.advance(30)
        assert await one.vms() == {"ins_1": (1, "running")}
        one.control.epoch = 6
        await one.clock.advance(5)
        assert await one.vms() == {}


async def test_a_node_that_was_forgotten_registers_anew_and_keeps_its_vms(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))
        one.control.known = False
        one.control.node_id = "node_2"
        await one.clock.until(lambda: len(one.control.registrations) == 2, timeout=10)
        await one.control.assign("ins_2", workload())
        await one.clock.until(one.control.is_("healthy", "ins_2"), timeout=5)
        assert await one.vms() == {"ins_1": (1, "running"), "ins_2": (1, "running")}
        assert one.control.reports[-1].node_id == "node_2"


async def test_an_engine_that_fails_for_a_while_does_not_end_the_agent(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        observe = one.engine.observe

        async def fail() -> tuple[object, ...]:
            raise LookupError("a defect")

        one.engine.observe = fail  # type: ignore[method-assign,assignment]
        await one.control.assign("ins_1", workload())
        await one.clock.advance(10)
        one.engine.observe = observe  # type: ignore[method-assign]
        await one.clock.until(one.control.is_("healthy"), timeout=5)


async def test_a_deletion_that_hangs_holds_up_no_other_vm(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload())
        await one.clock.until(one.control.is_("healthy"))

        asked: list[str] = []

        async def hang(vm_id: str) -> None:
            asked.append(vm_id)
            await one.clock.sleep(10_000)

        one.engine.delete = hang  # type: ignore[method-assign]
        await one.control.assign("ins_1", present=False)
        await one.clock.until(one.control.is_("stopped"))
        await one.control.assign("ins_2", workload())
        await one.clock.until(one.control.is_("healthy", "ins_2"), timeout=3)
        await one.clock.advance(60)
        assert len(asked) == 1


async def test_a_flood_of_changes_is_told_in_few_reports(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        work = workload()
        for number in range(100):
            await one.control.assign(f"ins_{number}", replace(work, app_id=f"app_{number}"))
        before = len(one.control.reports)
        await one.clock.until(one.control.is_("healthy", "ins_99"))
        assert len(one.control.reports) - before < 10


async def test_without_a_port_and_checks_five_seconds_of_running_are_health(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.control.assign("ins_1", workload(port=0))
        await one.clock.advance(5.0)
        assert one.control.phase("ins_1") == "starting"
        await one.clock.until(one.control.is_("healthy"), timeout=0.5)
        assert one.prober.tries == []
