"""Lists of the API, whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from shellwego.client.generated import Pagination

T = TypeVar("T")
MOST = 100
"""Rows of one page."""


class _Page(Protocol[T]):
    @property
    def data(self) -> list[T]: ...
    @property
    def pagination(self) -> Pagination: ...


def every(page: Callable[[str | None], _Page[T]]) -> list[T]:
    """All rows of a list; `page` gives those from a cursor on.

    Raises:
        Unreachable: the pages lead in a circle, which no list of the API does.
    """
    found: list[T] = []
    cursor: str | None = None
    while True:
        got = page(cursor)
        found += got.data
        if not got.pagination.has_more:
            return found
        if got.pagination.next_cursor in (None, cursor):
            from shellwego.client.transport import Unreachable  # noqa: PLC0415 - heavy, and only for this

            raise Unreachable("the answer is not one of this API: a list that does not end")
        cursor = got.pagination.next_cursor
