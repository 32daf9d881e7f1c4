"""What all bodies share: strict inputs, quantities as text, times, and the frame of a page."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from shellwego.control.pages import E, Page
from shellwego.core.quantities import parse_share, parse_size

_CPU_MILLI = re.compile(r"(\d{1,6})m", re.ASCII)
_CPU_CORES = re.compile(r"\d{1,3}(\.\d{1,3})?", re.ASCII)


class Body(BaseModel):
    """A request's body: no coercion, no unknown field, no infinity, no text with the character NUL."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    may_hold_nul: ClassVar[frozenset[str]] = frozenset()
    """Fields whose text is not kept: handed on, or a credential, of which is not told what is wrong with it."""

    def __deepcopy__(self, memo: object = None) -> Self:
        """Itself: nobody changes a body, and pydantic would copy each default for each request."""
        return self

    @field_validator("*")
    @classmethod
    def _refuse_nul(cls, value: object, info: ValidationInfo) -> object:
        """No name or text holds it, and not every store and terminal can be given it."""
        if isinstance(value, str) and "\0" in value and info.field_name not in cls.may_hold_nul:
            raise ValueError("holds the character NUL")
        return value


class View(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_cpu(text: str) -> int:
    """`500m`, `2`, `0.5` as thousandths of a core.

    Raises:
        ValueError: it is none of these.
    """
    milli = _CPU_MILLI.fullmatch(text)
    if milli is not None:
        return int(milli[1])
    if not _CPU_CORES.fullmatch(text):
        raise ValueError("a share of CPU is cores or thousandths of one, such as 2, 0.5 or 500m")
    return round(float(text) * 1000)


def _checked_size(text: str) -> str:
    parse_size(text)
    return text


def _checked_cpu(text: str) -> str:
    parse_cpu(text)
    return text


def _checked_share(text: str) -> str:
    parse_share(text)
    return text


def _checked_label(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a name has no control characters")
    return text


Label = Annotated[str, AfterValidator(_checked_label), Field(min_length=1, max_length=100)]
"""What people call a thing for themselves."""
Size = Annotated[str, AfterValidator(_checked_size), Field(max_length=16, examples=["512m", "1gb"])]
Cpu = Annotated[str, AfterValidator(_checked_cpu), Field(max_length=16, examples=["500m", "2"])]
SharePart = Annotated[str, AfterValidator(_checked_share), Field(max_length=5, examples=["25%", "2"])]
"""A number of instances, or a percentage of those wanted."""
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Argument = Annotated[str, StringConstraints(max_length=4096)]
Arguments = Annotated[list[Argument], Field(max_length=128)]


def when(seconds: float) -> datetime:
    """A stored time as the API shows it."""
    return datetime.fromtimestamp(seconds, UTC)


def when_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else when(seconds)


class Pagination(View):
    """Where a page lies. Cursors are opaque; `total` is there on `include=total` only."""

    limit: int
    has_more: bool
    next_cursor: str | None
    prev_cursor: str | None
    total: int | None = None


def pagination(page: Page[E]) -> Pagination:
    """The frame of a page."""
    return Pagination(
        limit=page.limit,
        has_more=page.has_more,
        next_cursor=page.next_cursor,
        prev_cursor=page.prev_cursor,
        total=page.total,
    )
