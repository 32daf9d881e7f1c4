"""Properties of the rollout planner over random histories, and proof that the rules would notice if they were broken."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shellwego.core.rollout import plan_rollout
from tests.core.rollout_mutants import MUTANTS, Mutant, planner_of
from tests.core.rollout_parts import EVENTS, Event
from tests.core.rollout_play import first_broken, play, random_events, shrink

HISTORIES = 3_000
NIGHTLY_HISTORIES = 150_000
MUTANT_HISTORIES = HISTORIES
"""A mutant must fall within the number that the suite plays."""


def test_every_history_keeps_the_rules(request: pytest.FixtureRequest) -> None:
    count = NIGHTLY_HISTORIES if request.config.getoption("--nightly") else HISTORIES
    broken = first_broken(plan_rollout, range(count))
    if broken is not None:
        seed, error = broken
        shortest = shrink(plan_rollout, random_events(seed), seed)
        pytest.fail(f"seed {seed}: {error}\nshortest: {shortest}")


SCALED_DOWN_BESIDE_A_CANARY_WITHOUT_PAUSES = (
    *(("scale", 51), ("deploy", 32), ("deploy", 11), ("fail", 14), ("fetched", 1), ("start", 73), ("stop-run", 21)),
    *(("fail", 44), ("sleep", 52), ("sicken", 6), ("deploy", 13), ("stuck-session", 39), ("deploy-hanging", 30)),
    *(("restart", 99), ("deploy-canary", 75), ("tick", 62), ("edge-back", 17), ("kill", 43), ("kill", 86)),
    ("scale", 57),
)
"""What the edges do not serve yet of the canary, and what goes because fewer are wanted, must not hold up its step."""


FORCED_OUT_OF_A_PROCESS_THAT_VANISHES = (
    *(("restart", 84), ("kill", 84), ("deploy-hanging", 88), ("rollback", 74), ("wait", 11), ("scale", 67)),
    *(("drain", 57), ("deploy-migration-fails", 62), ("tick", 32), ("deploy-migration-hangs", 26), ("wait", 43)),
    *(("stuck-session", 58), ("deploy-canary", 46), ("drain", 29), ("deploy-hanging", 68), ("force-out", 41)),
)
"""One that has to leave is no reason for the others to stop serving before the rest is ready."""


FORCED_OUT_BESIDE_A_CANARY = (
    *(("deploy-canary", 1), ("tick", 54), ("fetched", 99), ("restart", 55), ("drain", 30), ("deploy", 7)),
    *(("wait", 38), ("wait", 19), ("force-out", 89)),
)
"""Where the last old one has to leave its node, nothing is left beside the canary: that is seen at once."""


@pytest.mark.parametrize(
    ("events", "seed"),
    [
        (SCALED_DOWN_BESIDE_A_CANARY_WITHOUT_PAUSES, 13016),
        (FORCED_OUT_OF_A_PROCESS_THAT_VANISHES, 15061),
        (FORCED_OUT_BESIDE_A_CANARY, 83938),
    ],
)
def test_a_history_that_once_broke_a_rule_keeps_it(events: tuple[Event, ...], seed: int) -> None:
    """By its events: what a seed alone gives changes with the list of events."""
    play(plan_rollout, events, seed)


@given(
    events=st.lists(st.tuples(st.sampled_from(sorted(set(EVENTS))), st.integers(0, 99)), max_size=25),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_history_that_hypothesis_finds_keeps_the_rules(events: list[Event], seed: int) -> None:
    play(plan_rollout, events, seed)


def test_an_unchanged_copy_of_the_planner_is_not_accused() -> None:
    with planner_of(None) as planner:
        assert first_broken(planner, range(100)) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_planted_fault_is_caught(mutant: Mutant) -> None:
    with planner_of(mutant) as planner:
        seeds = (*range(mutant.hint, MUTANT_HISTORIES), *range(mutant.hint))
        assert first_broken(planner, seeds) is not None, f"“{mutant.name}” was not noticed"
