"""The query of a list: limit, cursor, sort, total; the same for every resource."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Query

from shellwego.control.pages import MAX_LIMIT, PageRequest, parse_sort
from shellwego.core.errors import MalformedError
from shellwego.ports.store import Op, Where, within

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Project = Annotated[str, Query(max_length=255, description="Id or name; needed where the token sees several.")]
Organization = Annotated[str, Query(max_length=255, description="Id or name.")]
Filter = str | None
Since = Annotated[float | None, Query(alias="filter[time][gte]", ge=0, le=1e11, allow_inf_nan=False)]
Until = Annotated[float | None, Query(alias="filter[time][lte]", ge=0, le=1e11, allow_inf_nan=False)]
_MAX_VALUES = 50

SortFields = Mapping[str, type[str] | type[float]]


@dataclass(frozen=True, slots=True)
class ListQuery:
    limit: int
    cursor: str
    sort: str
    total: bool

    def page(self, fields: SortFields, default: str) -> PageRequest:
        """The page that is asked for, by the fields of this resource; raises `MalformedError`."""
        order, sort_type = parse_sort(self.sort or default, fields)
        return PageRequest(order=order, sort_type=sort_type, limit=self.limit, cursor=self.cursor, total=self.total)


async def _list_query(
    limit: Limit = 20,
    cursor: Annotated[str, Query(max_length=1024)] = "",
    sort: Annotated[str, Query(max_length=80, description="field:asc or field:desc")] = "",
    include: Annotated[Literal["total"] | None, Query()] = None,
) -> ListQuery:
    return ListQuery(limit, cursor, sort, include == "total")


Listing = Annotated[ListQuery, Depends(_list_query)]


def one_of(field: str, text: str | None) -> tuple[Where, ...]:
    """`filter[field]=a,b`: any of these values. Absent: no condition.

    Raises:
        MalformedError: more values than a query should carry.
    """
    if text is None:
        return ()
    values = text.split(",")
    if len(values) > _MAX_VALUES:
        raise MalformedError("too-many-values", f"filter[{field}] takes at most {_MAX_VALUES} values")
    return (within(field, values),)


def between(since: float | None, until: float | None) -> tuple[Where, ...]:
    """`filter[time][gte]` and `filter[time][lte]`, in seconds since the epoch."""
    bounds = (("time", Op.GTE, since), ("time", Op.LTE, until))
    return tuple(Where(field, op, value) for field, op, value in bounds if value is not None)


def contains(field: str, text: str | None) -> tuple[Where, ...]:
    """`filter[q]=part`: the field holds this text, whatever the case."""
    return () if text is None else (Where(field, Op.CONTAINS, text),)
