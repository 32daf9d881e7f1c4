"""The kinds of columns that tables are declared with: only types that mean the same in SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, Text

AnyColumn = Column[str] | Column[int] | Column[float] | Column[bool]


@dataclass(frozen=True, slots=True)
class Declared:
    """A table's own columns; every table has an `id` before them."""

    name: str
    columns: tuple[AnyColumn, ...]


def table(name: str, *columns: AnyColumn) -> Declared:
    return Declared(name, columns)


def text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def integer(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Integer, nullable=nullable)


def byte_count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def moment(name: str, *, nullable: bool = False) -> Column[float]:
    """Seconds since the epoch, or a length in seconds."""
    return Column(name, Double, nullable=nullable)


def flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


def nested(name: str, *, nullable: bool = False) -> Column[str]:
    """A value with parts, as JSON."""
    return Column(name, Text, nullable=nullable)


def version() -> Column[int]:
    """For compare-and-set: rises with each change of the row."""
    return Column("version", BigInteger, nullable=False)
