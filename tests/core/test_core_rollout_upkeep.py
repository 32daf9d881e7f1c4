"""An app without a deployment, case by case: what the planner does so that it stays, or ends, as it should."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.apps import Process, RestartMode, RestartPolicy
from shellwego.core.changes import Drain, Forget, Lose, MoveDeployment, Start, Stop, Suspend, new_instance
from shellwego.core.deployments import DeploymentState
from shellwego.core.instances import Desired, Eviction, Instance, OwnerKind, Phase, Sleep
from shellwego.core.publishing import SETTLE_S
from shellwego.core.rollout import RolloutPlan
from tests.core.app_builder import NOW, deployment, draining, edge, instance, release
from tests.core.planner_parts import STABLE, V1, V2, kinds, last_move, only, plan


def test_an_app_that_is_as_it_should_be_needs_nothing() -> None:
    assert plan(STABLE, instance(V1)) == RolloutPlan()


def test_scaling_up_starts_the_missing_slots() -> None:
    made = plan(replace(STABLE, counts={"web": 3}), instance(V1, 1))
    assert [change.slot for change in made.changes if isinstance(change, Start)] == [0, 2]


def test_scaling_down_takes_the_highest_slots_and_first_what_does_not_serve() -> None:
    running = [instance(V1, 0), instance(V1, 1, Phase.STARTING), instance(V1, 2)]
    made = plan(replace(STABLE, counts={"web": 1}), *running)
    assert only(made, Stop).instance_id == "v1.1"
    assert only(made, Drain).instance_id == "v1.2"


def test_a_stopped_app_drains_all() -> None:
    made = plan(replace(STABLE, stopped=True), instance(V1))
    assert kinds(made.changes) == ["Drain"]


def test_sleeping_instances_are_capacity() -> None:
    assert plan(STABLE, instance(V1, phase=Phase.ASLEEP)) == RolloutPlan()


def test_what_is_to_sleep_does_so_once_the_edges_have_nothing_of_it() -> None:
    dozing = replace(instance(V1), sleep=Sleep.DOZING, drain_since=NOW, routed_version=None)
    assert plan(STABLE, dozing) == RolloutPlan(), "it has no number yet by which edges could confirm"
    left = replace(dozing, unrouted_version=5)
    busy = plan(STABLE, left, edges=[edge(v1_0=2)])
    assert not busy.changes
    assert busy.next_at is not None
    assert only(plan(STABLE, left, edges=[edge()]), Suspend).cut == 0
    late = plan(STABLE, left, edges=[edge(v1_0=2)], now=NOW + 31)
    assert only(late, Suspend).cut == 2
    assert kinds(plan(replace(STABLE, stopped=True), left).changes) == ["Drain"], "a stop overtakes it"
    assert kinds(plan(replace(STABLE, deleting=True), left).changes) == ["Drain"]


def test_what_is_to_sleep_waits_for_the_edges_also_where_its_vm_ended() -> None:
    left = replace(
        instance(V1, phase=Phase.STARTING), sleep=Sleep.DOZING, drain_since=NOW, routed_version=None, unrouted_version=5
    )
    assert not plan(STABLE, left, edges=[edge(applied=4)]).changes
    assert kinds(plan(STABLE, left, edges=[edge(applied=5)]).changes) == ["Suspend"]


def test_a_deployment_does_not_wait_for_routes_to_what_is_to_sleep() -> None:
    dozing = replace(instance(V2), sleep=Sleep.DOZING, routed_version=None, unrouted_version=5, drain_since=NOW)
    rolling = replace(STABLE, release_id=V2.id)
    made = plan(rolling, dozing, deployments=[deployment(V2)], edges=[edge(v2_0=1)])
    assert last_move(made).state is DeploymentState.SUCCEEDED


def test_what_serves_nothing_sleeps_at_once() -> None:
    worker = release(1, port=0)
    made = plan(STABLE, replace(instance(worker), sleep=Sleep.DOZING, drain_since=NOW), releases=(worker,))
    assert kinds(made.changes) == ["Suspend"]


def test_a_lost_node_is_made_up_for_at_once() -> None:
    made = plan(STABLE, instance(V1), dead_nodes=["node_a"])
    assert kinds(made.changes) == ["Lose", "Start"]


def test_one_off_runs_are_lost_with_their_node_and_never_replaced() -> None:
    run = instance(V1, owner=OwnerKind.RUN, node_id="node_b", id="run")
    made = plan(STABLE, instance(V1), run, dead_nodes=["node_b"])
    assert made.changes == (Lose(instance_id="run", reason="its node is down"),)


def test_a_failed_instance_is_replaced_later_and_later() -> None:
    def failed(place: int, at: float) -> Instance:
        return replace(instance(V1, phase=Phase.FAILED, phase_since=at), id=f"f{place}")

    once = [failed(0, NOW)]
    assert plan(STABLE, *once, now=NOW) == RolloutPlan(next_at=NOW + 1)
    assert kinds(plan(STABLE, *once, now=NOW + 1).changes) == ["Start"]
    often = [failed(place, NOW - 100 * place) for place in range(9)]
    assert plan(STABLE, *often, now=NOW + 299) == RolloutPlan(next_at=NOW + 300)
    long_ago = [failed(0, NOW), *(failed(place, NOW - 7200) for place in range(1, 9))]
    assert kinds(plan(STABLE, *long_ago, now=NOW + 1).changes) == ["Start"]


def test_a_failing_slot_does_not_delay_another() -> None:
    made = plan(replace(STABLE, counts={"web": 2}), instance(V1, phase=Phase.FAILED))
    assert only(made, Start).slot == 1


def test_a_job_that_ended_well_fills_its_slot() -> None:
    job = Process(name="web", restart=RestartPolicy(mode=RestartMode.ON_FAILURE))
    jobs = release(1, port=0, processes=(job,))
    done = instance(jobs, phase=Phase.STOPPED)
    assert plan(STABLE, done, releases=[jobs]) == RolloutPlan()
    running = deployment(jobs)
    assert last_move(plan(STABLE, done, deployments=[running], releases=[jobs])).state is DeploymentState.SUCCEEDED


def test_a_service_that_ended_well_has_failed_all_the_same() -> None:
    web = Process(name="web", restart=RestartPolicy(mode=RestartMode.ON_FAILURE))
    served = release(1, processes=(web,))
    done = instance(served, phase=Phase.STOPPED)
    assert kinds(plan(STABLE, done, releases=[served], now=NOW + 1).changes) == ["Start"]


def test_a_process_that_vanishes_serves_until_the_new_ones_are_ready() -> None:
    api = release(2, processes=(Process(name="api"),))
    begun = deployment(api)
    known = [V1, api]
    made = plan(
        STABLE, instance(V1), instance(api, process="api", phase=Phase.STARTING), deployments=[begun], releases=known
    )
    assert "Drain" not in kinds(made.changes)
    made = plan(STABLE, instance(V1), instance(api, process="api"), deployments=[begun], releases=known)
    assert only(made, Drain).instance_id == "v1.0"


def test_what_is_to_stop_and_was_never_placed_is_over() -> None:
    run = instance(V1, owner=OwnerKind.RUN, phase=Phase.PENDING, desired=Desired.STOP, id="run")
    assert kinds(plan(STABLE, instance(V1), run).changes) == ["Stop"]


# --- the end of an app ---


def test_a_deleted_app_drains_stops_and_is_forgotten() -> None:
    going = replace(STABLE, deleting=True)
    run = instance(V1, owner=OwnerKind.RUN, process="job", id="run")
    made = plan(going, instance(V1), run, deployments=[deployment(V2)])
    assert only(made, Drain).instance_id == "v1.0"
    assert only(made, Stop).instance_id == "run"
    assert only(made, MoveDeployment).state is DeploymentState.CANCELLED
    assert plan(going, draining(V1), edges=[edge(applied=0)]).changes == ()
    assert kinds(plan(going, draining(V1), edges=[edge()]).changes) == ["Stop"]
    assert plan(going, instance(V1, phase=Phase.STOPPED, desired=Desired.STOP)).changes == (Forget(),)


ASLEEP = instance(V1, phase=Phase.ASLEEP, sleep=Sleep.ASLEEP)


def test_what_comes_for_one_that_sleeps_and_has_to_leave_goes_on_with_its_memory() -> None:
    made = plan(STABLE, replace(ASLEEP, eviction=Eviction.GENTLE))
    assert only(made, Start).memory_of == ASLEEP.id
    assert kinds(made.changes) == ["Start"], "it stays until the other has its memory"
    row = new_instance(only(made, Start), "app", V1, id_="ins_new", now=NOW)
    assert (row.memory_of, row.sleep, row.phase) == (ASLEEP.id, Sleep.ASLEEP, Phase.PENDING)
    assert "Start" not in kinds(plan(STABLE, replace(ASLEEP, eviction=Eviction.GENTLE), row).changes)


def test_who_comes_for_one_in_a_high_slot_comes_into_that_slot() -> None:
    leaving = replace(ASLEEP, slot=3, eviction=Eviction.GENTLE)
    came = only(plan(STABLE, leaving), Start)
    assert (came.slot, came.memory_of) == (3, leaving.id)
    taken = replace(instance(V1, 3), id="ins_other")
    assert "Start" not in kinds(plan(STABLE, leaving, taken).changes), "its slot is filled already"


@pytest.mark.parametrize(
    "changes",
    [
        {"sleep": Sleep.AWAKE},
        {"sleep": Sleep.DOZING, "phase": Phase.HEALTHY},
        {"phase": Phase.HEALTHY},
        {"eviction": Eviction.FORCED},
    ],
)
def test_what_does_not_sleep_or_goes_at_once_leaves_no_memory(changes: dict[str, object]) -> None:
    leaving = replace(replace(ASLEEP, eviction=Eviction.GENTLE), **changes)  # type: ignore[arg-type]
    assert only(plan(STABLE, leaving), Start).memory_of == ""


def test_who_may_stay_serves_on_where_another_has_to_leave_at_once() -> None:
    """Both are left of what an app came back from: one spare instance is not two."""
    gentle = replace(instance(V2, 0), eviction=Eviction.GENTLE)
    forced = replace(instance(V2, 1), eviction=Eviction.FORCED)
    made = plan(replace(STABLE, counts={"web": 2}), instance(V1, 0), gentle, forced)
    assert only(made, Drain).instance_id == forced.id


def test_a_deploy_takes_no_memory_along() -> None:
    newer = plan(STABLE, replace(ASLEEP, eviction=Eviction.GENTLE), deployments=[deployment(V2)])
    assert only(newer, Start).memory_of == ""


def test_one_behind_a_published_port_is_stopped_once_nodes_had_time_to_hear_of_it() -> None:
    left = replace(draining(V1), drain_since=NOW - SETTLE_S + 1)
    waits = plan(STABLE, left, instance(V2), deployments=[deployment(V2)], edges=[edge()], published=frozenset({"web"}))
    assert "Stop" not in kinds(waits.changes)
    assert "nodes" in last_move(waits).reason
    assert waits.next_at == NOW + 1
    other = plan(STABLE, left, instance(V2), deployments=[deployment(V2)], edges=[edge()], published=frozenset({"db"}))
    assert only(other, Stop).instance_id == "v1.0"
    settled = replace(left, drain_since=NOW - SETTLE_S)
    made = plan(
        STABLE, settled, instance(V2), deployments=[deployment(V2)], edges=[edge()], published=frozenset({"web"})
    )
    assert only(made, Stop).instance_id == "v1.0"
