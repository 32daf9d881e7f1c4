"""Numbers that rows get after their commit: planned on a snapshot, and given by compare-and-set of the counters.

Why not in one transaction: a query for rows without a number reads what every writer adds to, so the database would end
that transaction and have it run again, over and over. So the search is done on a snapshot, which disturbs nobody, and
the transaction that gives the numbers touches the counters and those rows only, a batch at a time. A counter that has
not changed since the snapshot proves that nobody gave a number in between, so the rows still have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from shellwego.control.marks import mark, set_mark
from shellwego.ports.store import Table, Transaction

R = TypeVar("R")
PORTION = 100
"""So many rows are numbered in one transaction at most."""


@dataclass(frozen=True, slots=True)
class Numbers(Generic[R]):
    """What the next rows are to get. Nothing, where no row lacks a number."""

    seen: Mapping[str, int]
    """Of each counter that is needed: its value in the snapshot."""
    values: Mapping[str, int]
    """And what it is to be."""
    rows: tuple[R, ...]
    """With their numbers, in order."""


def give(tx: Transaction, numbers: Numbers[R], table: Table[R]) -> bool:
    """Store the rows with their numbers; False, and nothing is stored, where others gave some since they were planned."""
    if any(mark(tx, counter) != value for counter, value in numbers.seen.items()):
        return False
    for counter, value in numbers.values.items():
        set_mark(tx, counter, value)
    for row in numbers.rows:
        table.update(row)
    return True
