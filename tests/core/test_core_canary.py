"""Canaries: the weights that edges get, and when a step is over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.apps import Process, RestartPolicy
from shellwego.core.canary import described, edge_weights, stepped
from shellwego.core.deployments import CanaryPlan, CanaryStep, Deployment, Share
from shellwego.core.instances import Observed, Phase
from shellwego.core.quantities import parse_share
from shellwego.core.routes import RouteFacts, route_of
from shellwego.core.routing import EVEN_WEIGHT, MAX_WEIGHT
from tests.core.app_builder import app, deployment, instance, release

PLAN = CanaryPlan(weights=(10, 50), pause_s=60.0)


def names(kind: str, count: int) -> list[str]:
    return [f"{kind}{number}" for number in range(count)]


def share(weights: dict[str, int], kind: str) -> float:
    return 100 * sum(n for name, n in weights.items() if name.startswith(kind)) / sum(weights.values())


@given(new=st.integers(1, 100), old=st.integers(1, 100), weight=st.integers(1, 99), wanted=st.integers(1, 100))
def test_the_new_ones_get_their_percent_but_each_no_more_than_its_part(
    new: int, old: int, weight: int, wanted: int
) -> None:
    weights = edge_weights(names("new", new), names("old", old), weight, wanted)
    percent = max(1, min(weight, 100 * new // wanted))
    each = max(weights.values())
    assert all(1 <= value <= MAX_WEIGHT for value in weights.values())
    if each < MAX_WEIGHT or min(weights.values()) >= EVEN_WEIGHT:
        assert share(weights, "new") == pytest.approx(percent, abs=3)


@pytest.mark.parametrize(
    ("new", "old", "weight", "wanted", "expected"),
    [
        (1, 1, 10, 1, (8, 72)),
        (1, 1, 50, 1, (8, 8)),
        (1, 4, 50, 4, (11, 8)),
        (2, 4, 50, 4, (16, 8)),
        (1, 99, 1, 100, (8, 8)),
    ],
)
def test_weights_are_small_numbers(new: int, old: int, weight: int, wanted: int, expected: tuple[int, int]) -> None:
    weights = edge_weights(names("new", new), names("old", old), weight, wanted)
    assert (weights["new0"], weights["old0"]) == expected


@pytest.mark.parametrize(("new", "old"), [(0, 3), (3, 0), (0, 0)])
def test_where_one_kind_is_alone_all_are_equal(new: int, old: int) -> None:
    assert set(edge_weights(names("new", new), names("old", old), 10, 3).values()) <= {EVEN_WEIGHT}


def test_the_route_of_a_canary_has_its_weights_and_that_of_a_promoted_one_has_not() -> None:
    old, new = release(1), release(2)
    running = deployment(new, strategy="canary", canary=PLAN)

    def weights(of: Deployment) -> list[int]:
        route = route_of(
            RouteFacts(
                now=0.0,
                app=app(release_id=new.id),
                releases={old.id: old, new.id: new},
                instances=(instance(old), instance(new, observed=Observed(phase=Phase.HEALTHY, address="10.64.0.3"))),
                running=of,
            )
        )
        assert route is not None
        return [endpoint.weight for endpoint in route.endpoints]

    assert weights(running) == [72, 8]
    assert weights(deployment(new, canary=PLAN, step=CanaryStep(number=2))) == [EVEN_WEIGHT, EVEN_WEIGHT]
    assert weights(deployment(new)) == [EVEN_WEIGHT, EVEN_WEIGHT]


@pytest.mark.parametrize(
    ("step", "now", "holds", "then"),
    [
        (CanaryStep(), 0.0, False, CanaryStep()),
        (CanaryStep(), 5.0, True, CanaryStep(since=5.0)),
        (CanaryStep(since=5.0), 64.9, True, CanaryStep(since=5.0)),
        (CanaryStep(since=5.0), 65.0, True, CanaryStep(number=1, since=65.0)),
        (CanaryStep(since=5.0), 65.0, False, CanaryStep()),
        (CanaryStep(number=1, since=5.0), 65.0, True, CanaryStep(number=2)),
        (CanaryStep(number=2), 65.0, True, CanaryStep(number=2)),
    ],
)
def test_a_step_is_over_when_it_held_for_its_pause_without_a_break(
    step: CanaryStep, now: float, holds: bool, then: CanaryStep
) -> None:
    assert stepped(step, PLAN, lambda _: holds, now) == then


def test_without_a_pause_all_steps_that_hold_are_over_at_once() -> None:
    assert stepped(CanaryStep(), CanaryPlan(weights=(10, 50), pause_s=0.0), lambda weight: weight < 50, 7.0).number == 1


def test_what_is_told_of_a_step_does_not_move_by_itself() -> None:
    assert described(CanaryStep(), PLAN) == "canary step 1 of 2, 10 % of the requests: not all of it is served yet"
    assert described(CanaryStep(number=1, since=3.0), PLAN) == "canary step 2 of 2, 50 % of the requests: held for 60 s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2", Share(count=2)), ("25%", Share(percent=25)), ("0", Share()), ("100%", Share(percent=100))],
)
def test_a_share_is_a_count_or_a_percentage(text: str, expected: Share) -> None:
    assert parse_share(text) == expected
    assert expected.text == text


@pytest.mark.parametrize("text", ["", "%", "101%", "-1", "1.5", "2 %", "99999", "٣"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number of instances"):
        parse_share(text)


def test_what_came_later_changes_no_hash_where_it_says_nothing() -> None:
    """The hash of a release that an older version made is that of the same config today."""
    assert release(1).content_hash == "0c2d6d5703f7443d6d47e5cd1168cfef4c9563925310c725182507003a392b6e"
    named = release(1, processes=(Process(env={"A": "1"}),))
    paused = release(1, processes=(Process(restart=RestartPolicy(backoff_s=2.0)),))
    assert len({release(1).content_hash, named.content_hash, paused.content_hash}) == 3
