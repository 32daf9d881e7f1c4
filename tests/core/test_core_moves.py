"""A move of a volume, as values: whatever happens in whatever order, one owner, and an end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.moves import (
    BEFORE_SWITCH,
    LAST_S,
    MOST_ROUNDS,
    MOST_STOPS,
    PAUSE_S,
    RETURN_S,
    SMALL_BYTES,
    STAGE_MOVES,
    MoveFacts,
    MovePlan,
    MoveStage,
    Step,
    VolumeMove,
    plan_move,
)

MOVE = VolumeMove(replica_id="rep_1", source_node_id="node_1", target_node_id="node_2", began_at=0.0, stage_at=0.0)
FACTS = MoveFacts(move=MOVE, source_ready=True, target_ready=True, round=1, round_held=1, held=True, returned=False)


def at(stage: MoveStage, **facts: object) -> MoveFacts:
    return replace(FACTS, move=replace(MOVE, stage=stage), **facts)  # type: ignore[arg-type]


def after(plan: MovePlan) -> tuple[MoveStage, Step]:
    return plan.move.stage, plan.step


def test_large_rounds_are_followed_by_others_while_the_app_runs_but_by_no_more_than_three() -> None:
    facts, asked = replace(FACTS, round_bytes=SMALL_BYTES + 1), 1
    while (plan := plan_move(facts, 1.0)).step is Step.ROUND:
        asked += 1
        facts = replace(facts, move=plan.move, round=asked, round_held=asked)
    assert (after(plan), asked) == ((MoveStage.STOPPING, Step.STOP), MOST_ROUNDS)
    assert plan.move.sent_bytes == MOST_ROUNDS * (SMALL_BYTES + 1)


def test_after_a_small_round_whoever_holds_the_volume_is_stopped() -> None:
    plan = plan_move(replace(FACTS, round_bytes=SMALL_BYTES), 5.0)
    assert after(plan) == (MoveStage.STOPPING, Step.STOP)
    assert (plan.move.stopped_at, plan.move.stops) == (5.0, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round_held": 0, "trouble": "no room"}, "no room"),
        ({"target_ready": False}, "the node it goes to does not answer"),
        ({"source_ready": False}, "its node does not answer"),
        ({"obstacle": "the app could not follow"}, "the app could not follow"),
    ],
)
def test_what_stands_in_the_way_is_told_and_the_app_is_left_alone(changes: dict[str, object], reason: str) -> None:
    plan = plan_move(replace(FACTS, **changes), 1.0)  # type: ignore[arg-type]
    assert (after(plan), plan.move.reason) == ((MoveStage.COPYING, Step.WAIT), reason)
    assert plan.move.held_up


@pytest.mark.parametrize(("arrived", "held_up"), [(False, True), (True, False)])
def test_it_is_held_up_by_a_new_node_that_does_not_take_the_volume_over(arrived: bool, held_up: bool) -> None:
    plan = plan_move(at(MoveStage.ARRIVING, arrived=arrived), 1.0)
    assert plan.move.held_up == held_up


def test_what_each_move_waits_for_by_itself_holds_it_not_up() -> None:
    waiting = [at(MoveStage.STOPPING, leaving=True), at(MoveStage.CLEARING), replace(FACTS, round_held=0)]
    assert [plan_move(facts, 1.0).move.held_up for facts in waiting] == [False] * 3


def test_the_last_round_is_asked_for_once_nobody_has_the_volume() -> None:
    assert after(plan_move(at(MoveStage.STOPPING, leaving=True), 1.0)) == (MoveStage.STOPPING, Step.WAIT)
    assert after(plan_move(at(MoveStage.STOPPING, held=False), 1.0)) == (MoveStage.LAST, Step.ROUND)


def test_whoever_may_stay_again_is_told_again_to_leave_the_volume() -> None:
    assert after(plan_move(at(MoveStage.STOPPING, leaving=False), 1.0)) == (MoveStage.STOPPING, Step.STOP)


def test_the_switch_waits_for_the_last_round_and_the_copy_for_the_volume() -> None:
    assert after(plan_move(at(MoveStage.LAST, held=False, round_held=0), 1.0)) == (MoveStage.LAST, Step.WAIT)
    assert after(plan_move(at(MoveStage.LAST, held=False), 1.0)) == (MoveStage.ARRIVING, Step.SWITCH)
    assert after(plan_move(at(MoveStage.ARRIVING), 1.0)) == (MoveStage.ARRIVING, Step.WAIT)
    assert after(plan_move(at(MoveStage.ARRIVING, arrived=True), 1.0)) == (MoveStage.CLEARING, Step.DROP)


def test_it_is_not_switched_to_a_node_that_is_silent_though_that_holds_the_last_round() -> None:
    plan = plan_move(at(MoveStage.LAST, held=False, target_ready=False), 1.0)
    assert after(plan) == (MoveStage.COPYING, Step.WAIT)
    assert plan.move.reason == "the node it goes to does not answer"


def test_a_stop_that_takes_too_long_is_taken_back_and_tried_again_later_and_not_for_ever() -> None:
    now, facts = 0.0, FACTS
    for stop in range(1, MOST_STOPS + 1):
        plan = plan_move(facts, now)
        assert (after(plan), plan.move.stops) == ((MoveStage.STOPPING, Step.STOP), stop)
        last = plan_move(replace(facts, move=plan.move, held=False), now)
        waiting = replace(facts, move=last.move, held=False, round=2, round_held=1)
        assert plan_move(waiting, now + LAST_S - 1).step is Step.WAIT
        plan = plan_move(waiting, now + LAST_S)
        assert (plan.move.stage, plan.move.stopped_at) == (MoveStage.COPYING, None)
        now, facts = now + LAST_S, replace(FACTS, move=plan.move)
        if stop < MOST_STOPS:
            assert after(plan_move(facts, now + PAUSE_S - 1)) == (MoveStage.COPYING, Step.WAIT)
        now += PAUSE_S
    assert after(plan_move(facts, now)) == (MoveStage.FAILED, Step.DROP)


def test_it_is_over_once_the_app_is_back_and_the_copy_gone_and_says_how_long_the_app_was_stopped() -> None:
    stopped = replace(MOVE, stage=MoveStage.CLEARING, stopped_at=2.0, stage_at=3.0)
    waiting = plan_move(replace(FACTS, move=stopped), 4.0)
    assert waiting.move.reason == "the app comes back"
    back = plan_move(replace(FACTS, move=waiting.move, returned=True), 5.5)
    assert (back.move.stage, back.move.stopped_s) == (MoveStage.CLEARING, 3.5)
    assert plan_move(replace(FACTS, move=back.move, cleared=True), 9.0).move.stage is MoveStage.DONE
    late = plan_move(replace(FACTS, move=stopped, cleared=True), 3.0 + RETURN_S)
    assert (late.move.stage, late.move.stopped_s) == (MoveStage.DONE, None)
    assert "did not come back" in late.move.reason


@pytest.mark.parametrize("stage", sorted(BEFORE_SWITCH))
def test_a_target_that_is_gone_ends_it_before_the_switch(stage: MoveStage) -> None:
    plan = plan_move(at(stage, target_exists=False, target_ready=False), 1.0)
    assert (after(plan), plan.move.ended_at) == ((MoveStage.FAILED, Step.DROP), 1.0)


@pytest.mark.parametrize("stage", sorted(BEFORE_SWITCH))
def test_something_else_under_its_id_where_it_was_to_go_ends_it_before_the_switch(stage: MoveStage) -> None:
    plan = plan_move(at(stage, foreign=True, round_held=0), 1.0)
    assert after(plan) == (MoveStage.FAILED, Step.DROP)
    assert "something else" in plan.move.reason
    assert plan_move(at(MoveStage.CLEARING, foreign=True), 1.0).move.active


flags = st.booleans()
facts = st.builds(
    MoveFacts,
    move=st.builds(
        VolumeMove,
        replica_id=st.just("rep_1"),
        source_node_id=st.just("node_1"),
        target_node_id=st.just("node_2"),
        stage=st.sampled_from(MoveStage),
        rounds=st.integers(1, 5),
        stops=st.integers(0, 4),
        began_at=st.just(0.0),
        stage_at=st.sampled_from([0.0, 50.0]),
        stopped_at=st.sampled_from([None, 0.0]),
        back_at=st.sampled_from([None, 60.0]),
    ),
    source_ready=flags,
    target_ready=flags,
    target_exists=flags,
    round=st.integers(1, 3),
    round_held=st.integers(0, 3),
    round_bytes=st.sampled_from([0, SMALL_BYTES + 1]),
    trouble=st.sampled_from(["", "no room"]),
    foreign=flags,
    held=flags,
    leaving=flags,
    obstacle=st.sampled_from(["", "it lacks memory"]),
    arrived=flags,
    cleared=flags,
    returned=flags,
)


@given(facts, st.sampled_from([60.0, 100.0, 200.0, 1000.0]))
def test_each_step_is_one_of_the_table_and_keeps_what_a_move_promises(facts: MoveFacts, now: float) -> None:
    plan, before = plan_move(facts, now), facts.move
    assert plan.move.stage is before.stage or plan.move.stage in STAGE_MOVES[before.stage]
    if plan.step is Step.SWITCH:
        assert before.stage is MoveStage.LAST
        assert facts.round_held >= facts.round
        assert facts.target_ready
    if plan.step is Step.STOP:
        assert facts.target_ready
        assert before.stage is MoveStage.STOPPING or (facts.source_ready and not facts.obstacle)
    if plan.move.stage is MoveStage.LAST is not before.stage:
        assert (facts.held, plan.step) == (False, Step.ROUND)
    if plan.step is Step.DROP and facts.target_exists:
        assert (before.stage is MoveStage.ARRIVING and facts.arrived) or plan.move.stage is MoveStage.FAILED
    if not before.active:
        assert plan == MovePlan(before)
    if plan.step is Step.WAIT and plan.move.stage is before.stage:
        assert plan_move(replace(facts, move=plan.move), now) == plan
