"""When keys are exchanged, and by which slot packets go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.host.rotation import SLOTS, STALE_S, chosen_slot, first_generation, next_generation, slot_in_use

steps = st.integers(0, 10_000)
ages = st.none() | st.floats(-1e6, 1e6)


def generations_at(step: int) -> list[int]:
    return [first_generation(step, slot) for slot in SLOTS]


@given(steps)
def test_a_host_that_begins_has_nothing_to_exchange(step: int) -> None:
    assert next_generation(step, generations_at(step)) is None


@given(steps, st.lists(st.integers(0, 3), max_size=30), st.tuples(st.integers(-9, 99), st.integers(-9, 99)))
def test_whatever_steps_are_told_the_slot_in_use_keeps_its_key(
    start: int, leaps: list[int], known: tuple[int, int]
) -> None:
    generations, step = list(known), start
    for leap in leaps:
        step = max(0, step + leap * 7 - 9)
        following, used = next_generation(step, generations), slot_in_use(step)
        if following is not None:
            before = generations[used]
            generations[1 - used] = following
            assert generations[used] == before
            assert following == step // 2 + 1
            assert next_generation(step, generations) is None, "once"


@given(steps)
def test_who_hears_each_step_always_uses_the_current_generations_key(start: int) -> None:
    generations = generations_at(start)
    for step in range(start, start + 12):
        following = next_generation(step, generations)
        if following is not None:
            generations[1 - slot_in_use(step)] = following
        assert generations[slot_in_use(step)] == step // 2


@given(steps)
def test_a_key_that_is_told_is_not_used_before_half_a_generation_has_passed(step: int) -> None:
    following = next_generation(step, [-1, -1])
    assert following is None or (step % 2 == 1 and slot_in_use(step + 1) == following % 2 != slot_in_use(step))


@given(steps, ages, st.none() | st.sampled_from(SLOTS))
def test_where_there_was_a_handshake_of_late_the_slot_in_use_is_taken(
    step: int, other: float | None, present: int | None
) -> None:
    used = slot_in_use(step)
    seen = [other, other]
    seen[used] = STALE_S - 1
    assert chosen_slot(step, seen, present) == used


@given(steps, st.none() | st.floats(STALE_S, 1e9), st.none() | st.sampled_from(SLOTS))
def test_who_does_not_answer_there_is_reached_by_the_other_slot(
    step: int, age: float | None, present: int | None
) -> None:
    used = slot_in_use(step)
    seen = [age, age]
    seen[1 - used] = 5.0
    assert chosen_slot(step, seen, present) == 1 - used


@given(steps, st.none() | st.floats(STALE_S, 1e9), st.none() | st.sampled_from(SLOTS))
def test_who_answers_nowhere_is_left_where_he_was(step: int, age: float | None, present: int | None) -> None:
    assert chosen_slot(step, [age, age], present) == (slot_in_use(step) if present is None else present)
