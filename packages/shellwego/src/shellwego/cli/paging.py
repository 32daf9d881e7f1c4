"""All of a list, page by page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from shellwego.client.generated import Pagination

T = TypeVar("T")


class Paged(Protocol[T]):
    """A page, as the API answers."""

    @property
    def data(self) -> list[T]: ...
    @property
    def pagination(self) -> Pagination: ...


def every(fetch: Callable[[str | None], Paged[T]]) -> list[T]:
    """What `fetch` gives for each cursor, beginning with none."""
    found: list[T] = []
    cursor: str | None = None
    while True:
        page = fetch(cursor)
        found += page.data
        cursor = page.pagination.next_cursor
        if not page.pagination.has_more:
            return found
