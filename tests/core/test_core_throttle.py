"""Whoever guesses waits longer and longer; whoever mistypes does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.throttle import ACCOUNT, KNOWN_SOURCE, NONE, SOURCE, Attempts, Limit, begun, forgiven, wait

LIMITS = st.sampled_from([ACCOUNT, KNOWN_SOURCE, SOURCE])
PAUSES = st.lists(st.floats(0, 10_000), max_size=60)


@given(LIMITS, PAUSES)
def test_a_wait_is_never_negative_never_beyond_the_most_and_ends(limit: Limit, pauses: list[float]) -> None:
    attempts, now = NONE, 0.0
    for pause in pauses:
        now += pause
        left = wait(limit, attempts, now)
        assert 0 <= left <= limit.most_s
        assert wait(limit, attempts, now + left + 1e-3) == 0
        attempts = begun(limit, attempts, now)


@given(LIMITS, st.integers(1, 200), st.integers(1, 200))
def test_more_failures_never_wait_less(limit: Limit, few: int, more: int) -> None:
    few, more = sorted((few, more))
    assert wait(limit, Attempts(few, 5.0), 5.0) <= wait(limit, Attempts(more, 5.0), 5.0)


@given(LIMITS)
def test_a_guesser_gets_few_tries_in_a_day(limit: Limit) -> None:
    attempts, now, tries = NONE, 0.0, 0
    while now < 86_400:
        attempts, tries = begun(limit, attempts, now), tries + 1
        now += wait(limit, attempts, now)
    assert tries < limit.free + 12 + 86_400 / limit.most_s


@given(LIMITS)
def test_waiting_out_the_longest_wait_is_no_way_to_begin_anew(limit: Limit) -> None:
    attempts = Attempts(100, 0.0)
    later = begun(limit, attempts, limit.most_s)
    assert wait(limit, later, limit.most_s) == pytest.approx(limit.most_s)


@given(LIMITS, st.integers(0, 5))
def test_the_first_mistakes_are_free(limit: Limit, mistakes: int) -> None:
    attempts = NONE
    for _ in range(mistakes):
        assert wait(limit, attempts, 1.0) == 0
        attempts = begun(limit, attempts, 1.0)


def test_quiet_is_forgotten_and_success_is_no_failure() -> None:
    tried = Attempts(50, 0.0)
    assert wait(ACCOUNT, tried, ACCOUNT.forget_s) == 0
    assert begun(ACCOUNT, tried, ACCOUNT.forget_s).failures == 1
    assert forgiven(begun(ACCOUNT, NONE, 1.0)).failures == 0
    assert forgiven(NONE).failures == 0
