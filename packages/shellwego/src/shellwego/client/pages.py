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
    """All rows of a list; `page` gives those from a cursor on."""
    found: list[T] = []
    cursor: str | None = None
    while True:
        got = page(cursor)
        found += got.data
        cursor = got.pagination.next_cursor
        if not got.pagination.has_more:
            return found
