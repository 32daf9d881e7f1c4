"""The last lines of a VM's output: enough to see what is wrong, and never more than a report can bear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.attempts import end_of
from shellwego.core.logtails import LINE_BYTES, LINES, TAIL_BYTES, log_tail
from shellwego.core.vms import VmPhase, VmView


def test_a_short_tail_is_told_as_it_is() -> None:
    assert log_tail(["one", "", "three"]) == ("one", "", "three")
    assert log_tail([str(number) for number in range(100)])[0] == str(100 - LINES)


@pytest.mark.parametrize("letter", ["x", "é", "€", "😀"])
def test_bounds_are_of_bytes_whatever_the_letters(letter: str) -> None:
    (line,) = log_tail([letter * 10_000])
    assert LINE_BYTES - 4 < len(line.encode()) <= LINE_BYTES
    assert set(line) == {letter}
    tail = log_tail([letter * 10_000] * 100)
    assert TAIL_BYTES - LINE_BYTES - 4 < sum(len(line.encode()) + 1 for line in tail) <= TAIL_BYTES


@given(st.lists(st.text(max_size=2_000), max_size=80))
def test_what_is_told_are_the_last_lines(lines: list[str]) -> None:
    tail = log_tail(lines)
    assert len(tail) <= LINES
    assert sum(len(line.encode()) + 1 for line in tail) <= TAIL_BYTES
    for told, line in zip(reversed(tail), reversed(lines), strict=False):
        assert line.startswith(told)


def test_an_end_brings_no_more() -> None:
    view = VmView(
        vm_id="vm_1", instance_id="ins_1", attempt=1, phase=VmPhase.ENDED, log_tail=("\U0001f600" * 16_384,) * 50
    )
    assert sum(len(line.encode()) for line in end_of(view).log_tail) <= TAIL_BYTES
