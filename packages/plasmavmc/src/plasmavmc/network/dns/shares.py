"""Places that all share, of which none takes more than is fair. Pure.

Theory. Who comes takes a place while those of his group are fewer than half of the places that are left. One group alone has
up to a third of all then; many who take all that they can have come to equal numbers, and there is always as much left for
one who has none (Choudhury and Hahne, "Dynamic queue length thresholds", 1998). What a group may have at most, and one of
it, is said besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Shares:
    """So many places."""

    def __init__(self, places: int, *, of_group: int, of_one: int) -> None:
        self._places = places
        self._of_group = of_group
        self._of_one = of_one
        self._groups: Counter[str] = Counter()
        self._ones: Counter[str] = Counter()
        self._taken = 0

    @property
    def crowded(self) -> bool:
        """More than half of them are taken."""
        return self._taken * 2 > self._places

    def has_for(self, one: str, group: str) -> bool:
        """Whether there is a place for him."""
        fair = self._groups[group] * 2 < self._places - self._taken
        return fair and self._groups[group] < self._of_group and self._ones[one] < self._of_one

    @contextmanager
    def taken(self, one: str, group: str) -> Iterator[None]:
        """Have a place until the end."""
        self._taken += 1
        self._ones[one] += 1
        self._groups[group] += 1
        try:
            yield
        finally:
            self._taken -= 1
            for counted, who in ((self._ones, one), (self._groups, group)):
                counted[who] -= 1
                if not counted[who]:
                    del counted[who]
