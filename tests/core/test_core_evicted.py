"""What an evicted instance waits for, and whether it is on its way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.apps import AppConfig, Release
from shellwego.core.evicted import SLOW_AFTER_S, EvictedFacts, waits_for
from shellwego.core.instances import Desired, Instance, Observed, Phase
from shellwego.core.target import Target
from tests.core.test_core_drain import EVICTED, PENDING, SERVING

NOW = 200.0
UNPLACED = replace(PENDING, placement_reason="no room")
SUCCESSOR = replace(SERVING, id="ins_s", node_id="node_2")
FAILED = replace(SERVING, id="ins_n", phase=Phase.FAILED, created_at=5.0, observed=Observed(reason="exit code 1"))
STARTING = replace(
    SUCCESSOR, phase=Phase.STARTING, phase_since=NOW - SLOW_AFTER_S + 1, observed=Observed(reason="refused")
)
SLOW = replace(STARTING, phase_since=NOW - SLOW_AFTER_S)
ELSE = {"slot": 1, "id": "ins_else"}
"""In another slot."""


def told(relatives: list[Instance], *, deploying: bool = False, runs: str = EVICTED.content_hash) -> tuple[str, bool]:
    """Of one that was evicted: why it is there, and whether it moves. `runs`: the content that its app is to run."""
    release = Release(
        id="rel_0",
        app_id="app_1",
        number=1,
        config=AppConfig(),
        image_digest="sha256:d",
        content_hash=runs,
        created_at=0.0,
        created_by="usr_1",
    )
    facts = EvictedFacts(
        relatives={"app_1": [EVICTED, *relatives]},
        deploying=frozenset({"app_1"} if deploying else ()),
        aims={"app_1": Target(release=release, generation=0)},
    )
    seen = waits_for(facts, EVICTED, NOW)
    return seen.reason, seen.moves


@pytest.mark.parametrize(
    ("relatives", "reason"),
    [
        ([], "moves now"),
        ([PENDING], "another one is pending in its place"),
        ([STARTING], "another one is starting in its place"),
        ([replace(PENDING, memory_of=EVICTED.id)], "its memory goes to another node"),
        ([SUCCESSOR], "another one is healthy in its place"),
        ([SUCCESSOR, replace(STARTING, **ELSE)], "another one is healthy in its place"),
        ([SUCCESSOR, replace(UNPLACED, **ELSE, process="worker")], "another one is healthy in its place"),
        ([SUCCESSOR, replace(FAILED, **ELSE), replace(PENDING, **ELSE)], "another one is healthy in its place"),
        ([replace(FAILED, slot=7)], "moves now"),
        ([replace(FAILED, content_hash="other")], "moves now"),
        ([replace(UNPLACED, **ELSE, process="worker")], "moves now"),
    ],
)
def test_it_moves_while_another_one_comes_in_its_place(relatives: list[Instance], reason: str) -> None:
    assert told(relatives) == (reason, True)


@pytest.mark.parametrize(
    ("relatives", "reason"),
    [
        ([UNPLACED], "another one cannot be placed: no room"),
        ([FAILED], "what came in its place failed: exit code 1"),
        ([SLOW], "another one came in its place, and does not become healthy: refused"),
        (
            [replace(SLOW, phase=Phase.UNHEALTHY, observed=Observed())],
            "another one came in its place, and does not become healthy: it is unhealthy",
        ),
        ([SUCCESSOR, replace(UNPLACED, **ELSE)], "serves until another one of its app does: no room"),
        ([SUCCESSOR, replace(FAILED, **ELSE)], "serves until another one of its app does: exit code 1"),
        (
            [SUCCESSOR, replace(SLOW, **ELSE)],
            "serves until another one of its app does: web.1 does not become healthy: refused",
        ),
    ],
)
def test_it_does_not_where_the_other_one_may_never_serve(relatives: list[Instance], reason: str) -> None:
    assert told(relatives) == (reason, False)


@pytest.mark.parametrize("other", [UNPLACED, SLOW])
def test_it_does_not_where_one_that_may_never_serve_leaves_no_room_for_another(other: Instance) -> None:
    reason, moves = told([replace(other, **ELSE)])
    assert reason.startswith("serves until another one of its app does: ")
    assert not moves


@pytest.mark.parametrize("relatives", [[], [replace(STARTING, content_hash="newer")]])
def test_it_does_not_while_its_app_is_deployed(relatives: list[Instance]) -> None:
    assert told(relatives, deploying=True) == ("its app is being deployed", False)
    assert told([STARTING, *relatives], deploying=True) == ("another one is starting in its place", True)


OLDER = "older"
"""Content of the release that the app is to run again."""


@pytest.mark.parametrize(
    ("relative", "reason"),
    [
        (replace(STARTING, content_hash=OLDER), "another one is starting in its place"),
        (STARTING, "another one is starting in its place"),
        (replace(STARTING, content_hash=OLDER, **ELSE), "another release comes in its place"),
        (replace(UNPLACED, content_hash=OLDER), "another one cannot be placed: no room"),
        (
            replace(UNPLACED, content_hash=OLDER, process="worker"),
            "serves until another one of its app does: no room",
        ),
        (replace(FAILED, content_hash=OLDER), "serves until another one of its app does: exit code 1"),
        (replace(FAILED, content_hash=OLDER, slot=7), "serves until another one of its app does: exit code 1"),
        (
            replace(FAILED, content_hash=OLDER, process="worker"),
            "serves until another one of its app does: exit code 1",
        ),
    ],
)
def test_it_does_not_where_its_app_comes_back_to_another_release(relative: Instance, reason: str) -> None:
    assert told([relative], runs=OLDER) == (reason, False)


@pytest.mark.parametrize(("desired", "reason"), [(Desired.DRAIN, "drains"), (Desired.STOP, "stops")])
def test_what_drains_or_stops_moves(desired: Desired, reason: str) -> None:
    seen = waits_for(EvictedFacts(), replace(EVICTED, desired=desired), NOW)
    assert (seen.reason, seen.moves) == (reason, True)
