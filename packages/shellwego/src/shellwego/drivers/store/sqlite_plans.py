"""Statements as sqlite3 takes them: text with question marks, and the order of the values.

SQLAlchemy writes the SQL, once for each statement; running it through SQLAlchemy would cost ten times what SQLite takes to
answer by a key. sqlite3 keeps what it prepared by the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import dialect

PLANS_KEPT = 512
"""Statements, each for every count of values that it was asked with."""
_DIALECT = dialect()

Statement = sa.Select[Any] | sa.Insert | sa.Update | sa.Delete


@dataclass(frozen=True, slots=True)
class Plan:
    """One statement, as SQLite is asked."""

    sql: str
    values: Callable[[Mapping[str, Any]], Sequence[Any]]
    """Values by name → in the order of the question marks."""


def question(statement: sa.Select[Any], values: Mapping[str, Any]) -> Plan:
    """The plan of a question that is asked with such values: a list has as many question marks as items."""
    return plan(statement, tuple([(name, len(value)) for name, value in values.items() if isinstance(value, list)]))


@lru_cache(maxsize=PLANS_KEPT)
def plan(statement: Statement, counts: tuple[tuple[str, int], ...] = ()) -> Plan:
    """The plan of a statement; `counts` are of the values that are lists."""
    compiled = statement.compile(dialect=_DIALECT)
    # What the statement itself brought along, such as the offset of a page.
    own = {name: bind.value for name, bind in compiled.binds.items() if bind.value is not None}
    if not counts:
        names = compiled.positiontup or []
        if not own and len(names) > 1:
            return Plan(str(compiled), itemgetter(*names))
        return Plan(str(compiled), lambda given: [given[name] if name in given else own[name] for name in names])
    lists = {name: [None] * count for name, count in counts}
    expanded = compiled.construct_expanded_state({**dict.fromkeys(compiled.binds), **own, **lists})
    places = {
        part: (name, place) for name, parts in expanded.parameter_expansion.items() for place, part in enumerate(parts)
    }
    order = [places.get(name, (name, None)) for name in expanded.positiontup or []]

    def values(given: Mapping[str, Any]) -> list[Any]:
        known = {**own, **given}
        return [known[name] if place is None else known[name][place] for name, place in order]

    return Plan(expanded.statement, values)
