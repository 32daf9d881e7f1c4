"""Turns at a few places that all owners share."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.turns import Turns

OWNERS = "abcd"


def taken(turns: Turns[str]) -> list[str]:
    found = []
    while (who := turns.take()) is not None:
        found.append(who)
    return found


def test_no_owner_holds_more_than_his_share_though_places_are_free() -> None:
    turns: Turns[str] = Turns(16, 4)
    for number in range(10):
        turns.ask("a", f"a{number}")
    assert taken(turns) == ["a0", "a1", "a2", "a3"]
    turns.end("a")
    assert taken(turns) == ["a4"]


def test_all_owners_together_hold_no_more_than_there_are() -> None:
    turns: Turns[str] = Turns(3, 2)
    for owner in ("a", "a", "b", "b"):
        turns.ask(owner, owner)
    assert taken(turns) == ["a", "b", "a"]
    turns.end("b")
    assert taken(turns) == ["b"]


def test_who_holds_the_fewest_goes_first_however_many_others_wait() -> None:
    turns: Turns[str] = Turns(4, 2)
    for owner in ("a", "b"):
        for _ in range(50):
            turns.ask(owner, owner)
    assert taken(turns) == ["a", "b", "a", "b"]
    turns.ask("late", "late")
    turns.end("a")
    assert taken(turns) == ["late"]


def test_equals_go_in_turn() -> None:
    turns: Turns[str] = Turns(1, 1)
    for owner in ("a", "a", "a", "b", "b", "c"):
        turns.ask(owner, owner)
    seen = []
    while (who := turns.take()) is not None:
        seen.append(who)
        turns.end(who)
    assert seen == ["a", "b", "c", "a", "b", "a"]


def test_who_waits_no_more_gets_no_turn() -> None:
    turns: Turns[str] = Turns(1, 1)
    turns.ask("a", "a0")
    turns.ask("a", "a1")
    turns.withdraw("a", "a0")
    assert taken(turns) == ["a1"]
    with pytest.raises(ValueError, match="not in"):
        turns.withdraw("a", "a1")


@given(st.lists(st.tuples(st.sampled_from(["ask", "end", "withdraw"]), st.sampled_from(OWNERS))))
def test_no_place_is_lost_and_none_is_empty_that_somebody_may_have(steps: list[tuple[str, str]]) -> None:
    places, share = 3, 2
    turns: Turns[str] = Turns(places, share)
    waiting: dict[str, deque[str]] = {owner: deque() for owner in OWNERS}
    held: Counter[str] = Counter()
    for number, (step, owner) in enumerate(steps):
        if step == "ask":
            turns.ask(owner, f"{owner}{number}")
            waiting[owner].append(f"{owner}{number}")
        elif step == "end" and held[owner]:
            turns.end(owner)
            held[owner] -= 1
        elif step == "withdraw" and waiting[owner]:
            turns.withdraw(owner, waiting[owner].pop())
        for who in taken(turns):
            assert waiting[who[0]].popleft() == who
            held[who[0]] += 1
        assert held.total() <= places
        assert max(held.values(), default=0) <= share
        idle = [each for each in OWNERS if waiting[each] and held[each] < share]
        assert held.total() == places or not idle
