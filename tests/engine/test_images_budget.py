"""Which images go so that the rest keeps a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.images.budget import FRESH_S, StoredImage, surplus

NOW = 10_000.0
IMAGES = st.lists(
    st.builds(
        StoredImage, st.uuids().map(str), st.integers(0, 100), st.integers(9_800, 10_000).map(float), st.booleans()
    ),
    max_size=8,
)


def stored(digest: str, size: int, age_s: float, *, needed: bool = False) -> StoredImage:
    return StoredImage(digest, size, NOW - age_s, needed)


def test_the_longest_unused_goes_first_and_no_more_than_has_to() -> None:
    images = [stored("new", 10, 100), stored("old", 10, 300), stored("older", 10, 400)]
    assert surplus(images, 30, NOW) == ()
    assert surplus(images, 29, NOW) == ("older",)
    assert surplus(images, 10, NOW) == ("older", "old")


def test_what_is_needed_or_fresh_stays_though_it_is_above_the_budget() -> None:
    images = [stored("needed", 50, 500, needed=True), stored("free", 1, 200), stored("fresh", 50, FRESH_S / 2)]
    assert surplus(images, 0, NOW) == ("free",)


@given(IMAGES, st.integers(0, 300))
def test_either_the_rest_keeps_the_budget_or_nothing_more_may_go(images: list[StoredImage], budget: int) -> None:
    gone = surplus(images, budget, NOW)
    rest = [image for image in images if image.digest not in gone]
    assert all(image.needed or NOW - image.used_at < FRESH_S for image in rest) or (
        sum(image.disk_bytes for image in rest) <= budget
    )
    assert not any(image.needed for image in images if image.digest in gone)
