"""A deployment, case by case: what the planner does next, and in which words it says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.changes import Aim, Drain, MoveDeployment, Start, Stop
from shellwego.core.deployments import DeploymentState, Stage
from shellwego.core.images import ImageState
from shellwego.core.instances import Instance, Observed, Phase
from shellwego.core.rollout import ImageFacts
from shellwego.core.routes import EDGE_TIMEOUT_S
from tests.core.app_builder import NOW, app, deployment, draining, edge, instance, release
from tests.core.planner_parts import STABLE, V1, V2, V3, kinds, last_move, only, plan

# --- one deployment from its request to its end ---


def test_a_deployment_waits_for_its_image_and_says_so() -> None:
    fetching = ImageFacts(state=ImageState.FETCHING, reference="hello:v1")
    made = plan(app(), deployments=[deployment(V1, DeploymentState.PENDING)], image=fetching)
    move = only(made, MoveDeployment)
    assert (move.state, move.stage, move.reason) == (
        DeploymentState.PENDING,
        Stage.IMAGE,
        "fetches the image hello:v1",
    )
    assert made.next_at == NOW + 60


def test_an_image_that_cannot_be_had_fails_it_at_once_with_the_reason() -> None:
    broken = ImageFacts(state=ImageState.FAILED, reference="hello:v1", reason="layer 2 has another digest")
    made = plan(STABLE, instance(V1), deployments=[deployment(V2, DeploymentState.PENDING)], image=broken)
    move = only(made, MoveDeployment)
    assert (move.state, move.stage) == (DeploymentState.FAILED, Stage.IMAGE)
    assert move.reason == "the image hello:v1 cannot be had: layer 2 has another digest"
    assert kinds(made.changes) == ["MoveDeployment"], "the old release is left alone"


def test_a_first_deployment_starts_what_is_wanted() -> None:
    made = plan(app(counts={"web": 2}), deployments=[deployment(V1, DeploymentState.PENDING)])
    starts = [change for change in made.changes if isinstance(change, Start)]
    assert [(start.process, start.slot, start.release_id) for start in starts] == [
        ("web", 0, V1.id),
        ("web", 1, V1.id),
    ]
    assert last_move(made).reason == "web.0: waits for a node (and 1 more)"
    assert only(made, Aim).release_id == V1.id


@pytest.mark.parametrize(
    ("seen", "stage", "reason"),
    [
        (
            instance(V1, phase=Phase.PENDING, placement_reason="no node fits: 1 is draining"),
            Stage.PLACING,
            "web.0: no node fits: 1 is draining",
        ),
        (instance(V1, phase=Phase.ASSIGNED), Stage.STARTING, "web.0 starts"),
        (
            instance(V1, phase=Phase.STARTING, observed=Observed(detail="image")),
            Stage.STARTING,
            "web.0 starts (image)",
        ),
        (
            instance(V1, phase=Phase.STARTING, observed=Observed(detail="back-off", reason="exit code 1", ends=1)),
            Stage.STARTING,
            "web.0 starts (back-off): exit code 1",
        ),
        (
            instance(V1, phase=Phase.STARTING, observed=Observed(detail="checks", reason="connection refused")),
            Stage.CHECKING,
            "web.0 has not passed its checks yet: connection refused",
        ),
        (
            instance(V1, phase=Phase.UNHEALTHY, observed=Observed(reason="status 500")),
            Stage.CHECKING,
            "web.0 is unhealthy: status 500",
        ),
    ],
)
def test_stage_and_reason_say_what_is_waited_for(seen: Instance, stage: Stage, reason: str) -> None:
    move = last_move(plan(app(release_id=V1.id), seen, deployments=[deployment(V1)]))
    assert (move.state, move.stage, move.reason) == (DeploymentState.IN_PROGRESS, stage, reason)


def test_a_new_instance_that_is_healthy_lets_an_old_one_leave_the_routes() -> None:
    made = plan(STABLE, instance(V1), instance(V2), deployments=[deployment(V2)])
    assert only(made, Drain).instance_id == "v1.0"
    assert last_move(made).stage is Stage.DRAINING


def test_no_old_one_leaves_before() -> None:
    made = plan(STABLE, instance(V1), instance(V2, phase=Phase.STARTING), deployments=[deployment(V2)])
    assert "Drain" not in kinds(made.changes)


def test_a_deployment_is_not_done_before_the_edges_serve_the_new() -> None:
    fresh = instance(V2, routed_version=7)
    behind = plan(app(), fresh, deployments=[deployment(V2)], edges=[edge("e1", applied=7), edge("e2", applied=6)])
    assert last_move(behind).stage is Stage.SHIFTING
    assert "e2" in last_move(behind).reason
    assert behind.next_at is not None
    served = plan(app(), fresh, deployments=[deployment(V2)], edges=[edge("e1", applied=7), edge("e2", applied=7)])
    assert last_move(served).state is DeploymentState.SUCCEEDED


def test_an_instance_that_no_route_table_has_yet_is_waited_for() -> None:
    made = plan(app(), instance(V2, routed_version=None), deployments=[deployment(V2)], edges=[edge()])
    assert last_move(made).stage is Stage.SHIFTING


def test_an_edge_without_a_lease_or_silent_for_long_is_not_waited_for() -> None:
    gone = edge("e1", applied=0, lease_until=NOW - 1)
    assert (
        last_move(plan(app(), instance(V2), deployments=[deployment(V2)], edges=[gone])).state
        is DeploymentState.SUCCEEDED
    )
    long_ago = instance(V2, routed_version=7, phase_since=NOW - EDGE_TIMEOUT_S)
    stuck = edge("e1", applied=0)
    assert (
        last_move(plan(app(), long_ago, deployments=[deployment(V2)], edges=[stuck])).state is DeploymentState.SUCCEEDED
    )


def test_an_old_one_is_stopped_once_drained_and_then_the_deployment_is_done() -> None:
    made = plan(STABLE, draining(V1), instance(V2), deployments=[deployment(V2)], edges=[edge()])
    assert only(made, Stop).instance_id == "v1.0"
    assert last_move(made).state is DeploymentState.SUCCEEDED
    assert only(made, Aim) == Aim(release_id=V2.id, stable_release_id=V2.id, stable_generation=0)


def test_what_drains_holds_the_end_and_its_reason_names_the_edge() -> None:
    made = plan(STABLE, draining(V1), instance(V2), deployments=[deployment(V2)], edges=[edge(applied=4)])
    move = last_move(made)
    assert (move.state, move.stage) == (DeploymentState.IN_PROGRESS, Stage.DRAINING)
    assert move.reason == "web.0 drains: waits for the edge e1 to apply the new routes"


def test_cut_sessions_and_silent_edges_are_on_record() -> None:
    edges = [edge("e1", v1_0=2), edge("e2", applied=0)]
    made = plan(STABLE, draining(V1), instance(V2), deployments=[deployment(V2)], edges=edges, now=NOW + 60)
    assert (only(made, Stop).cut, only(made, Stop).silent_edges) == (2, ("e2",))
    move = last_move(made)
    assert (move.state, move.cut_connections) == (DeploymentState.SUCCEEDED, 2)
    assert move.reason == "without the edge e2, which is silent"


def test_draining_does_not_fail_a_deployment_at_its_deadline() -> None:
    late = deployment(V2, wait_timeout_s=10.0)
    made = plan(STABLE, draining(V1), instance(V2), deployments=[late], edges=[edge(v1_0=1)], now=NOW + 20)
    assert last_move(made).state is DeploymentState.IN_PROGRESS


def test_instances_without_a_port_need_no_draining() -> None:
    old, new = release(1, port=0), release(2, port=0)
    made = plan(STABLE, instance(old), instance(new), deployments=[deployment(new)], releases=[old, new])
    assert only(made, Stop).instance_id == "v1.0"
    assert last_move(made).state is DeploymentState.SUCCEEDED


def test_a_deployment_of_what_runs_already_is_done_at_once() -> None:
    again = release(2, image="hello:v1")
    begun = deployment(again, DeploymentState.PENDING)
    made = plan(STABLE, instance(V1), deployments=[begun], releases=[V1, again])
    assert kinds(made.changes) == ["MoveDeployment", "MoveDeployment", "Aim"]
    assert last_move(made).state is DeploymentState.SUCCEEDED


# --- failure ---

ENDED = Observed(
    phase=Phase.FAILED, reason="the workload ended with exit code 1", reason_code="exited", ends=3, log_tail=("boom",)
)
FAILED = instance(V2, phase=Phase.FAILED, observed=ENDED)


def test_the_first_new_instance_that_fails_for_good_rolls_back() -> None:
    made = plan(STABLE, instance(V1), FAILED, deployments=[deployment(V2, stage=Stage.STARTING)])
    move = only(made, MoveDeployment)
    assert (move.state, move.stage, move.reason_code) == (DeploymentState.ROLLED_BACK, Stage.STARTING, "exited")
    assert move.reason == "web.0 failed: the workload ended with exit code 1 (3 times)"
    assert move.log_tail == ("boom",)
    assert kinds(made.changes) == ["MoveDeployment"], "the old instance serves on, and no new one is tried"


def test_a_rollback_brings_back_what_was_stopped_already() -> None:
    of = replace(STABLE, counts={"web": 2}, release_id=V2.id)
    others = (instance(V1, 1), instance(V2), replace(FAILED, slot=1))
    made = plan(of, *others, deployments=[deployment(V2)])
    assert (only(made, Start).slot, only(made, Start).release_id) == (0, V1.id)
    assert "Drain" not in kinds(made.changes), "the new one that serves stays until the old one is back"
    assert only(made, Aim).release_id == V1.id


def test_without_a_release_to_return_to_all_is_stopped() -> None:
    of = app(release_id=V2.id, counts={"web": 2})
    made = plan(of, FAILED, instance(V2, 1, Phase.STARTING), deployments=[deployment(V2)])
    assert only(made, MoveDeployment).state is DeploymentState.FAILED
    assert only(made, Stop).instance_id == "v2.1"
    assert only(made, Aim).release_id == ""


def test_without_the_wish_to_roll_back_it_is_failed_and_the_new_ones_go() -> None:
    of = replace(STABLE, counts={"web": 2})
    others = (instance(V1), instance(V1, 1), FAILED, instance(V2, 1, Phase.STARTING))
    made = plan(of, *others, deployments=[deployment(V2, rollback_on_failure=False)])
    assert only(made, MoveDeployment).state is DeploymentState.FAILED
    assert only(made, Stop).instance_id == "v2.1"


def test_at_the_deadline_it_fails_with_what_it_waited_for_and_the_last_lines() -> None:
    seen = Observed(detail="checks", reason="connection refused", log_tail=("listening on 80",))
    stuck = deployment(V2, stage=Stage.CHECKING, reason="web.0 has not passed its checks yet: connection refused")
    new = instance(V2, phase=Phase.STARTING, observed=seen)
    assert plan(STABLE, instance(V1), new, deployments=[stuck], now=NOW + 59.9).next_at == NOW + 60
    made = plan(STABLE, instance(V1), new, deployments=[stuck], now=NOW + 60)
    move = only(made, MoveDeployment)
    assert (move.state, move.stage, move.reason_code) == (DeploymentState.ROLLED_BACK, Stage.CHECKING, "timed-out")
    assert move.reason == "not done within 60 s: web.0 has not passed its checks yet: connection refused"
    assert move.log_tail == ("listening on 80",)
    assert only(made, Stop).instance_id == "v2.0"


def test_a_deployment_that_found_no_room_says_that_it_was_capacity() -> None:
    waiting = deployment(V2, stage=Stage.PLACING, reason="web.0: no node fits: 1 lacks memory")
    made = plan(STABLE, instance(V1), instance(V2, phase=Phase.PENDING), deployments=[waiting], now=NOW + 60)
    assert only(made, MoveDeployment).reason_code == "no-capacity"


def test_an_image_that_the_node_refuses_is_a_fault_of_stage_image() -> None:
    refused = replace(FAILED, observed=replace(ENDED, reason_code="image-corrupt"))
    made = plan(STABLE, instance(V1), refused, deployments=[deployment(V2)])
    assert only(made, MoveDeployment).stage is Stage.IMAGE


def test_a_failure_of_before_the_deployment_does_not_count() -> None:
    old = replace(FAILED, phase_since=NOW - 1)
    made = plan(STABLE, instance(V1), old, deployments=[deployment(V2)])
    assert last_move(made).state is DeploymentState.IN_PROGRESS
    assert only(made, Start).slot == 0, "nor does it delay the new try"


def test_a_restart_that_fails_returns_to_the_instances_that_ran() -> None:
    of = replace(STABLE, generation=1)
    failed = replace(FAILED, id="new", content_hash=V1.content_hash, release_id=V1.id, generation=1)
    made = plan(of, instance(V1), failed, deployments=[deployment(V1)])
    assert only(made, MoveDeployment).state is DeploymentState.FAILED
    assert kinds(made.changes) == ["MoveDeployment"]
    assert plan(of, instance(V1), failed).changes == (), "and nothing is tried behind its back"


# --- several deployments ---


def test_a_newer_deployment_supersedes_the_older() -> None:
    older, newer = deployment(V2), deployment(V3, DeploymentState.PENDING, created_at=NOW + 1)
    made = plan(STABLE, instance(V1), instance(V2, phase=Phase.STARTING), deployments=[older, newer])
    moves = {change.deployment_id: change.state for change in made.changes if isinstance(change, MoveDeployment)}
    assert moves == {"dep_2": DeploymentState.SUPERSEDED, "dep_3": DeploymentState.IN_PROGRESS}
    assert only(made, Stop).instance_id == "v2.0"
    assert only(made, Start).release_id == V3.id


def test_while_the_newer_waits_for_its_image_the_older_goes_on() -> None:
    older, newer = deployment(V2), deployment(V3, DeploymentState.PENDING, created_at=NOW + 1)
    fetching = ImageFacts(state=ImageState.FETCHING)
    made = plan(STABLE, instance(V1), instance(V2), deployments=[older, newer], image=fetching)
    assert only(made, Drain).instance_id == "v1.0"


def test_while_the_only_one_waits_nothing_that_serves_is_replaced() -> None:
    """A half-done rollout was superseded: which of the two releases stays is not known yet."""
    waiting = deployment(V3, DeploymentState.PENDING)
    of = replace(STABLE, counts={"web": 2})
    fetching = ImageFacts(state=ImageState.FETCHING)
    made = plan(of, instance(V1), instance(V2), deployments=[waiting], image=fetching)
    assert kinds(made.changes) == ["MoveDeployment"]
    made = plan(of, instance(V1), deployments=[waiting], image=fetching)
    assert only(made, Start).release_id == V1.id, "but what is missing is made up for"


def test_a_cancelled_deployment_needs_no_undoing() -> None:
    made = plan(replace(STABLE, release_id=V2.id), instance(V1), instance(V2, phase=Phase.STARTING))
    assert only(made, Stop).instance_id == "v2.0"
    assert only(made, Aim).release_id == V1.id
