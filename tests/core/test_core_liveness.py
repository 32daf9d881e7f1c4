"""Silence counts only while it could have been heard."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.liveness import (
    MAX_GAP_S,
    MAX_STEP_S,
    STEADY_S,
    Hearing,
    Terms,
    come_up,
    gone_down,
    judge,
    listen,
    steadied,
    steady_at,
)
from shellwego.core.nodes import Node, NodeFacts, NodeHealth

FACTS = NodeFacts(hostname="a", version="1", cpu_milli=1, memory_bytes=1, disk_bytes=1)
NODE = Node(id="node_a", name="a", facts=FACTS, last_heard_at=50.0, created_at=0.0)
TERMS = Terms(suspect_s=3.5, down_s=5.0, unheard_s=30.0, handover_s=5.0)
FIRST = listen(None, NODE, None, judging=True)


def silence(
    seconds: float, *, ever: bool = True, step: float = 0.5, judging: bool = True, before: Hearing = FIRST
) -> Hearing:
    """The hearing of a node that says nothing for so long."""
    hearing = replace(before, ever=ever)
    for _ in range(round(seconds / step)):
        hearing = listen(hearing, NODE, step, judging=judging)
    return hearing


def test_a_silent_node_is_suspect_then_down() -> None:
    assert judge(NODE, silence(3.0), TERMS) is NodeHealth.READY
    assert judge(NODE, silence(3.5), TERMS) is NodeHealth.SUSPECT
    assert judge(NODE, silence(4.5), TERMS) is NodeHealth.SUSPECT
    assert judge(NODE, silence(5.0), TERMS) is NodeHealth.DOWN


def test_a_beat_ends_the_silence_and_the_suspicion() -> None:
    heard = listen(silence(4.5), replace(NODE, last_heard_at=54.0), 0.5, judging=True)
    assert heard.silence_s == 0
    assert judge(replace(NODE, health=NodeHealth.SUSPECT), heard, TERMS) is NodeHealth.READY


def test_ten_minutes_in_which_nobody_listened_are_no_silence() -> None:
    """The platform was off: the first look after its start knows nothing, whatever the node's last beat was."""
    assert (FIRST.silence_s, FIRST.ever) == (0, False)


def test_a_node_that_turns_up_while_we_listen_was_heard() -> None:
    assert listen(None, NODE, 0.5, judging=False).ever


def test_a_stall_of_the_listener_counts_as_one_step() -> None:
    assert listen(silence(0.0), NODE, MAX_GAP_S, judging=True).silence_s == MAX_STEP_S


def test_a_gap_in_which_nobody_could_be_heard_begins_the_silence_anew() -> None:
    """The store was away, or the process stood still: what nodes said may have come to nothing."""
    after = listen(silence(4.5), NODE, MAX_GAP_S + 0.1, judging=True)
    assert (after.silence_s, after.judging_s, after.ever) == (0, 0, False)
    assert listen(silence(4.5), replace(NODE, last_heard_at=60.0), 600.0, judging=True).ever, "it was heard meanwhile"


def test_a_silence_does_not_grow_while_nothing_that_a_node_says_can_be_stored() -> None:
    after = listen(silence(2.0), NODE, 0.5, judging=False, storing=False)
    assert (after.silence_s, after.judging_s) == (2.0, 0)


def test_who_takes_over_has_listened_before_but_judges_only_after_a_term_of_its_own() -> None:
    """The silence may be that of the server before it: nodes that spoke to that one need a moment to turn elsewhere."""
    before = silence(3.0, judging=False)
    assert judge(NODE, before, TERMS) is NodeHealth.READY
    assert judge(NODE, silence(3.0, before=before), TERMS) is NodeHealth.READY
    assert judge(NODE, silence(3.5, before=before), TERMS) is NodeHealth.SUSPECT
    assert judge(NODE, silence(5.0, before=before), TERMS) is NodeHealth.DOWN


def test_a_node_is_down_after_two_terms_though_who_judges_changes_all_the_time() -> None:
    assert judge(NODE, silence(9.5, judging=False), TERMS) is NodeHealth.SUSPECT
    assert judge(NODE, silence(10.0, judging=False), TERMS) is NodeHealth.DOWN


def test_who_judged_once_does_not_count_it_when_it_judges_again() -> None:
    again = silence(1.0, before=silence(0.5, judging=False, before=silence(4.5)))
    assert (again.silence_s, again.judging_s) == (6.0, 1.0)
    assert judge(NODE, again, TERMS) is NodeHealth.READY


def test_a_clock_that_steps_back_adds_nothing() -> None:
    assert listen(silence(1.0), NODE, -5.0, judging=True).silence_s == 1.0


def test_a_node_that_was_never_heard_gets_the_longer_term() -> None:
    assert judge(NODE, silence(20.0, ever=False), TERMS) is NodeHealth.SUSPECT
    assert judge(NODE, silence(30.0, ever=False), TERMS) is NodeHealth.DOWN


def test_a_node_that_is_down_stays_so_until_it_reports_its_new_epoch() -> None:
    heard = listen(silence(9.0), replace(NODE, last_heard_at=60.0), 0.5, judging=True)
    assert judge(replace(NODE, health=NodeHealth.DOWN), heard, TERMS) is NodeHealth.DOWN


LOOKS = st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.sampled_from([False] * 9 + [True])), max_size=80)
"""Seconds since the look before, whether we judged since then, and whether the node spoke."""


@given(looks=LOOKS)
def test_no_node_is_down_before_one_full_term_of_listening(looks: list[tuple[float, bool, bool]]) -> None:
    """Of one that was listened to without a gap, and either by who judges now, or for so long that nobody else's end is to
    blame for it."""
    hearing, node = replace(FIRST, ever=True), NODE
    listened = judged = 0.0
    for seconds, judging, speaks in looks:
        if speaks:
            node = replace(node, last_heard_at=node.last_heard_at + 1)
        hearing = listen(hearing, node, seconds, judging=judging)
        begins = speaks or seconds > MAX_GAP_S
        listened = 0.0 if begins else listened + min(seconds, MAX_STEP_S)
        judged = 0.0 if begins or not judging else judged + min(seconds, MAX_STEP_S)
        if judge(node, hearing, TERMS) is NodeHealth.DOWN:
            assert listened >= TERMS.down_s - 1e-6
            assert judged >= TERMS.down_s - 1e-6 or listened >= TERMS.down_s + TERMS.handover_s - 1e-6


@given(turns=st.lists(st.booleans(), min_size=20, max_size=20))
def test_silence_is_noticed_whoever_judges_when(turns: list[bool]) -> None:
    hearing = replace(FIRST, ever=True)
    for judging in turns:
        hearing = listen(hearing, NODE, 0.5, judging=judging)
    assert judge(NODE, hearing, TERMS) is NodeHealth.DOWN


def test_a_node_flaps_at_its_third_end_within_the_hour() -> None:
    node = NODE
    for moment in (0.0, 1000.0):
        node = gone_down(node, moment)
        assert node.flapping_since is None
    assert gone_down(node, 3599.0).flapping_since == 3599.0
    assert gone_down(node, 3600.0).flapping_since is None, "the first one is too long ago"


def test_each_end_is_a_new_epoch_and_few_are_remembered() -> None:
    node = NODE
    for moment in range(40):
        node = gone_down(node, float(moment))
    assert (node.health, node.epoch, len(node.downs), node.flapping_since) == (NodeHealth.DOWN, 41, 10, 2.0)


def test_it_is_steady_once_it_was_heard_for_a_while() -> None:
    node = replace(NODE, flapping_since=5.0, downs=(1.0, 2.0, 5.0), health=NodeHealth.DOWN)
    assert steady_at(node) is None
    up = come_up(node, 100.0)
    assert steady_at(up) == 100.0 + STEADY_S
    assert steady_at(replace(up, health=NodeHealth.SUSPECT)) is None
    steady = steadied(up)
    assert (steady.flapping_since, steady.downs, steady_at(steady)) == (None, (), None)
