"""Places that all share."""

from __future__ import annotations

from contextlib import ExitStack

from plasmavmc.network.dns.shares import Shares


def take_all(shares: Shares, groups: list[str], taken: ExitStack) -> dict[str, int]:
    """Each group has many who take what they can get, in turn; how many each of them has at the end."""
    found = dict.fromkeys(groups, 0)
    for number in range(1000):
        for group in groups:
            if shares.has_for(f"{group}{number}", group):
                taken.enter_context(shares.taken(f"{group}{number}", group))
                found[group] += 1
    return found


def test_one_group_alone_has_a_third_and_many_have_the_same_with_as_much_left() -> None:
    for groups, each in ((["a"], 34), (["a", "b", "c", "d"], 17), ([f"g{number}" for number in range(30)], 4)):
        shares = Shares(100, of_group=100, of_one=100)
        with ExitStack() as taken:
            assert max(take_all(shares, groups, taken).values()) == each
            assert shares.has_for("somebody", "another group")


def test_all_are_taken_at_last_and_not_one_more() -> None:
    shares = Shares(3, of_group=9, of_one=9)
    with ExitStack() as taken:
        assert sum(take_all(shares, [f"g{number}" for number in range(9)], taken).values()) == 3
        assert shares.crowded
        assert not shares.has_for("somebody", "another group")
    assert shares.has_for("somebody", "another group")
    assert not shares.crowded


def test_one_and_a_group_have_bounds_of_their_own() -> None:
    shares = Shares(1000, of_group=3, of_one=2)
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(shares.taken("a", "g"))
        assert not shares.has_for("a", "g")
        assert shares.has_for("b", "g")
        taken.enter_context(shares.taken("b", "g"))
        assert not shares.has_for("c", "g")
        assert shares.has_for("c", "h")
