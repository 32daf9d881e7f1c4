"""Cuts a failing story down: the fewest events and faults that still end in the same violation (delta debugging)."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.sim.play import Outcome, play
from tests.sim.story import Story

Play = Callable[[Story], Outcome]


def shrink(failed: Outcome, *, seconds: float = 60.0, play: Play = play) -> Outcome:
    """The smallest failing story found in the given time of this host."""
    assert failed.violation is not None
    name, deadline = failed.violation.name, time.monotonic() + seconds
    best = failed
    pieces = 2
    while len(best.story.kept) > 1 and time.monotonic() < deadline:
        shorter = _shorter(best, pieces, name, deadline, play)
        if shorter is not None:
            best, pieces = shorter, max(2, pieces - 1)
        elif pieces >= len(best.story.kept):
            break
        else:
            pieces = min(len(best.story.kept), pieces * 2)
    return best


def _shorter(best: Outcome, pieces: int, name: str, deadline: float, play: Play) -> Outcome | None:
    """The story without one of its pieces, if it still fails so."""
    kept = best.story.kept
    size = -(-len(kept) // pieces)
    for start in reversed(range(0, len(kept), size)):
        if time.monotonic() > deadline:
            return None
        outcome = play(best.story.only({*kept[:start], *kept[start + size :]}))
        if outcome.violation is not None and outcome.violation.name == name:
            return outcome
    return None
