"""What is told of failures that repeat."""

from __future__ import annotations

import pytest

from shellwego.core.troubles import SETTLED_S, TELL_EVERY_S, Lasting, Troubles


def told_of(failing_at: range, passing_at: range = range(0)) -> list[tuple[int, str, int]]:
    """(when, what, failures) of each line, for one thing that fails and passes at these seconds."""
    troubles = Troubles()
    lines: list[tuple[int, str, int]] = []
    for now in sorted({*failing_at, *passing_at}):
        said = troubles.failed("it", "full", now) if now in failing_at else troubles.passed("it", now)
        if said is not None:
            lines.append((now, "failed" if now in failing_at else "over", said.failures))
    return lines


def test_a_failure_each_second_is_told_at_once_then_once_a_minute_and_when_it_is_over() -> None:
    over = 150 + int(SETTLED_S) - 1
    assert told_of(range(150), range(150, 200)) == [
        (0, "failed", 1),
        (60, "failed", 61),
        (120, "failed", 121),
        (over, "over", 150),
    ]


def test_what_fails_every_other_time_is_one_trouble() -> None:
    lines = told_of(range(0, 120, 2), range(1, 200, 2))
    assert lines == [(0, "failed", 1), (60, "failed", 31), (129, "over", 60)]


def test_a_trouble_after_another_is_told_anew() -> None:
    troubles = Troubles()
    assert troubles.failed("it", "full", 0) == Lasting(1, 0)
    assert troubles.passed("it", SETTLED_S) == Lasting(1, SETTLED_S)
    assert troubles.passed("it", SETTLED_S + 1) is None
    assert troubles.failed("it", "full", SETTLED_S + 2) == Lasting(1, 0)


def test_each_thing_has_troubles_of_its_own() -> None:
    troubles = Troubles()
    assert troubles.failed("a", "full", 0)
    assert troubles.failed("b", "full", 0)
    assert not troubles.failed("a", "full", 1)


def test_another_cause_is_told_at_once_but_not_for_ever() -> None:
    troubles = Troubles()
    told = [bool(troubles.failed("it", f"cause {now % 20}", now)) for now in range(int(TELL_EVERY_S))]
    assert told == [True] * 5 + [False] * (len(told) - 5)


def test_troubles_of_what_is_gone_do_not_pile_up() -> None:
    troubles = Troubles()
    for number in range(5000):
        troubles.failed(f"app {number}", "full", float(number))
    assert troubles.passed("app 1", 1e6) is None
    assert troubles.passed("app 4999", 1e6)


@pytest.mark.parametrize(("seconds", "told"), [(0.04, 0.0), (61.26, 61.3)])
def test_a_line_has_count_and_seconds(seconds: float, told: float) -> None:
    assert Lasting(3, seconds).fields == {"failures": 3, "for_s": told}
