"""Histories are played: `play(plan, events, seed)` raises `AssertionError` where a rule is broken. It is deterministic."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from tests.core.rollout_history import History
from tests.core.rollout_parts import EVENTS, Event, Planner


def random_events(seed: int) -> list[Event]:
    """A history's events; short ones are as likely as long ones."""
    rng = random.Random(seed)
    return [(rng.choice(EVENTS), rng.randrange(100)) for _ in range(rng.randrange(1, 30))]


def play(plan: Planner, events: Iterable[Event], seed: int) -> None:
    """Run a history to its end; raises `AssertionError` where a rule is broken."""
    history = History(plan, seed)
    for event in events:
        history.happen(event)
        history.go_on()
    history.settle()


def shrink(plan: Planner, events: Sequence[Event], seed: int) -> list[Event]:
    """A shorter history that still breaks a rule: events are left out one by one."""
    shortest = list(events)
    place = 0
    while place < len(shortest):
        fewer = shortest[:place] + shortest[place + 1 :]
        try:
            play(plan, fewer, seed)
        except AssertionError:
            shortest = fewer
        else:
            place += 1
    return shortest


def first_broken(plan: Planner, seeds: Iterable[int]) -> tuple[int, AssertionError] | None:
    """The first seed whose history breaks a rule."""
    for seed in seeds:
        try:
            play(plan, random_events(seed), seed)
        except AssertionError as error:
            return seed, error
    return None
