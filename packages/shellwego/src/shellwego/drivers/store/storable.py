"""Which values a row can hold: those that every driver's database can, so that none takes what another must refuse.

PostgreSQL knows no NUL in text, keeps integers in 32 or 64 bits, and holds the values of an index in a third of a page;
SQLite turns a NaN into NULL. What is asked for may be such a value too: then no row fulfils the condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan

from sqlalchemy import BigInteger, Integer, Text

from shellwego.core.errors import FieldError, InvalidError
from shellwego.drivers.store.schema import TABLES
from shellwego.ports.store import INDEXES, UNIQUE, Op, Scalar, Where

MAX_KEY_BYTES = 1024
"""Of each text in an index. PostgreSQL's limit is about 2,700 bytes for all of an entry, which has two such texts."""

_SMALL = 1 << 31
_UNKNOWN = object()


@dataclass(frozen=True, slots=True)
class _Room:
    """What one column can hold."""

    field: str
    bits: int = 64
    bytes: int | None = None

    def fault(self, value: object) -> str:
        """Why the value does not fit; empty where it does."""
        if isinstance(value, str):
            return self._fault_of_text(value)
        if isinstance(value, int) and not -(1 << self.bits - 1) <= value < 1 << self.bits - 1:
            return f"is outside of {self.bits} bits"
        return "is not a number" if isinstance(value, float) and isnan(value) else ""

    def _fault_of_text(self, text: str) -> str:
        if "\0" in text:
            return "holds a NUL character"
        if text.isascii():
            size = len(text)
        else:
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                return "holds half of a surrogate pair"
        return f"is longer than {self.bytes} bytes" if self.bytes is not None and size > self.bytes else ""


def _rooms(table: str) -> Mapping[str, _Room]:
    keys = {"id", *INDEXES[table], *(field for key in UNIQUE.get(table, ()) for field in key)}
    rooms = {}
    for column in TABLES[table].columns:
        small = isinstance(column.type, Integer) and not isinstance(column.type, BigInteger)
        key = isinstance(column.type, Text) and column.name in keys
        rooms[column.name] = _Room(column.name, 32 if small else 64, MAX_KEY_BYTES if key else None)
    return rooms


_ROOMS = {table: _rooms(table) for table in TABLES}
_IN_ORDER = {table: tuple(rooms.values()) for table, rooms in _ROOMS.items()}
FIELDS: Mapping[str, tuple[str, ...]] = {table: tuple(rooms) for table, rooms in _ROOMS.items()}
"""Of each table's rows."""


def check_storable(table: str, values: Sequence[object], stored: Sequence[object] = ()) -> None:
    """Refuse a row that holds a value which not every database can hold; `values` are those of its `FIELDS`, in that order.
    `stored` are those of the row that it replaces, where it is known which they are: what it keeps of them fits.

    Raises:
        InvalidError: naming the field. The value is not repeated: it may be a secret.
    """
    for room, value, before in zip(_IN_ORDER[table], values, stored or (_UNKNOWN,) * len(values), strict=True):
        if value is before:
            continue
        if isinstance(value, str):  # nearly all are seen at a glance to fit, and every row that is written is asked
            if value.isascii() and "\0" not in value and (room.bytes is None or len(value) <= room.bytes):
                continue
        elif value is None or (isinstance(value, int) and -_SMALL <= value < _SMALL):
            continue
        if fault := room.fault(value):
            raise _refusal(table, room.field, fault)


def check_comparable(table: str, comparisons: Sequence[tuple[str, Scalar]]) -> None:
    """Refuse a question for what comes before or after a value that no row can hold.

    Raises:
        InvalidError: naming the field.
    """
    for field, value in comparisons:
        if fault := _ROOMS[table][field].fault(value):
            raise _refusal(table, field, fault)


def possible(table: str, conditions: Sequence[Where]) -> tuple[Where, ...] | None:
    """The conditions without values that no row can hold; None where one can therefore not be fulfilled."""
    kept = []
    for where in conditions:
        room = _ROOMS[table][where.field]
        if isinstance(where.value, tuple):
            kept.append(replace(where, value=tuple(value for value in where.value if not room.fault(value))))
        elif room.fault(where.value) and where.op in (Op.EQ, Op.CONTAINS):
            return None
        else:
            kept.append(where)
    return tuple(kept)


def is_possible_id(table: str, id_: str) -> bool:
    """Whether a row can have this id."""
    return not _ROOMS[table]["id"].fault(id_)


def _refusal(table: str, field: str, fault: str) -> InvalidError:
    return InvalidError(
        "not-storable", f"{table}: {field} {fault}", errors=(FieldError(field, "not-storable", f"{field} {fault}"),)
    )
