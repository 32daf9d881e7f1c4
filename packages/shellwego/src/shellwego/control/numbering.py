"""Numbers that rows get after their commit: planned on a snapshot, given by compare-and-set of the counters.

A transaction that looked for rows without a number would have read what every writer adds to, and the database would end it
again and again under other writers. So the looking is done on a snapshot, which disturbs nobody; the transaction that gives
the numbers has the counters and the rows, a portion at a time. A counter that stands as it stood in the snapshot says that
nobody gave a number since, so the rows have none still.
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
