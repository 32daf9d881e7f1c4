"""Lists in pages: a bounded number of rows, and cursors that say where the next and the previous page begin.

A cursor is opaque to clients and holds (order, direction, value, id) of the row at the page's edge, so a page costs the
same wherever it lies, and rows that come and go between two requests are neither doubled nor skipped. A cursor is input
like any other: what does not decode to the right types for the order that is asked for is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from shellwego.core.errors import MalformedError
from shellwego.ports.store import Order, Scalar, Table, Where

MAX_LIMIT = 100


class Identified(Protocol):
    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=Identified)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """Which page of a list. `sort_type` is the type of the values of the ordering field."""

    order: Order
    sort_type: type[str] | type[float] = str
    limit: int = 20
    cursor: str = ""
    total: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[E]):
    items: list[E]
    limit: int
    has_more: bool
    next_cursor: str | None
    prev_cursor: str | None
    total: int | None


@dataclass(frozen=True, slots=True)
class _Edge:
    """The row at which a page ends or begins, and which way to go on from it."""

    backwards: bool
    value: Scalar
    id: str


def parse_sort(text: str, fields: Mapping[str, type[str] | type[float]]) -> tuple[Order, type[str] | type[float]]:
    """`created_at:desc` as an order.

    Raises:
        MalformedError: another field than those, or another direction than `asc` and `desc`.
    """
    name, _, direction = text.partition(":")
    if name not in fields or direction not in ("", "asc", "desc"):
        allowed = ", ".join(sorted(fields))
        raise MalformedError("bad-sort", f"cannot sort by “{text[:80]}”; fields are {allowed}, then :asc or :desc")
    return Order(name, descending=direction == "desc"), fields[name]


def page(table: Table[E], request: PageRequest, *conditions: Where) -> Page[E]:
    """One page of the rows that fulfil all conditions."""
    edge = _decode(request) if request.cursor else None
    backwards = edge is not None and edge.backwards
    order = replace(request.order, descending=request.order.descending != backwards)
    after = (edge.value, edge.id) if edge else None
    rows = table.select(*conditions, order=order, limit=request.limit + 1, after=after)
    beyond = len(rows) > request.limit
    rows = rows[: request.limit]
    if backwards:
        rows.reverse()
    has_more = edge is not None if backwards else beyond
    has_previous = beyond if backwards else edge is not None
    return Page(
        items=rows,
        limit=request.limit,
        has_more=has_more and bool(rows),
        next_cursor=_encode(request, rows[-1], backwards=False) if rows and has_more else None,
        prev_cursor=_encode(request, rows[0], backwards=True) if rows and has_previous else None,
        total=table.count(*conditions) if request.total else None,
    )


def _sort_text(order: Order) -> str:
    return f"{order.field}:{'desc' if order.descending else 'asc'}"


def _encode(request: PageRequest, row: Identified, *, backwards: bool) -> str:
    value: Scalar = getattr(row, request.order.field)
    text = json.dumps([_sort_text(request.order), backwards, value, row.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(request: PageRequest) -> _Edge:
    try:
        padded = request.cursor + "=" * (-len(request.cursor) % 4)
        sort, backwards, value, id_ = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise MalformedError("bad-cursor", "the cursor was not made by this API") from None
    typed = isinstance(backwards, bool) and _is_text(id_) and _has_type(value, request.sort_type)
    if not typed or sort != _sort_text(request.order):
        raise MalformedError(
            "bad-cursor", "the cursor belongs to another list or order", resolution="Start again without a cursor."
        )
    return _Edge(backwards, value, id_)


def _is_text(value: object) -> bool:
    """Lone surrogates are text to JSON and to no store."""
    return isinstance(value, str) and value.isprintable()


def _has_type(value: object, wanted: type[str] | type[float]) -> bool:
    if wanted is str:
        return _is_text(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
