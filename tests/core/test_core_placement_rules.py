"""What rules for placement do to a release."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.apps import AppConfig, content_hash
from shellwego.core.placement_rules import PlacementRules, Spread

CONFIG = AppConfig()


@pytest.mark.parametrize(
    "rules",
    [
        PlacementRules(region="eu"),
        PlacementRules(zone="one"),
        PlacementRules(require={"disk": "ssd"}),
        PlacementRules(tolerate={"gpu": "yes"}),
    ],
)
def test_instances_that_may_have_to_move_are_replaced(rules: PlacementRules) -> None:
    assert content_hash(replace(CONFIG, placement=rules), "sha256:1") != content_hash(CONFIG, "sha256:1")


@pytest.mark.parametrize("spread", Spread)
def test_how_they_are_spread_replaces_none(spread: Spread) -> None:
    spreading = replace(CONFIG, placement=PlacementRules(spread=spread))
    assert content_hash(spreading, "sha256:1") == content_hash(CONFIG, "sha256:1")


def test_how_much_they_matter_replaces_none() -> None:
    mattering = replace(CONFIG, placement=PlacementRules(region="eu", priority=80))
    plain = replace(CONFIG, placement=PlacementRules(region="eu"))
    assert content_hash(mattering, "sha256:1") == content_hash(plain, "sha256:1")


def test_what_ran_before_there_were_rules_matches_its_release_still() -> None:
    known = "22a2841f1df8a58e"
    assert content_hash(CONFIG, "sha256:1").startswith(known)
