"""What the SQLite store asks its database, watched while it happens."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shellwego.drivers.store.sqlite import Connection

Watch = Callable[[str], None]


def _nothing(_statement: str) -> None:
    """Nobody wants to hear of it."""


@contextmanager
def watched(before: Watch, after: Watch = _nothing) -> Iterator[None]:
    """Meanwhile `before` is told of each statement that a SQLite store will run, and may fail it; `after` once it ran."""

    def execute(self: Connection, statement: str, *values: Any) -> sqlite3.Cursor:
        before(statement)
        cursor = sqlite3.Connection.execute(self, statement, *values)
        after(statement)
        return cursor

    Connection.execute = execute  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del Connection.execute
