"""Values that many messages have: texts, scopes, times, enumerations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from plasmavmc.errors import InvalidSpecError
from plasmavmc.rpc.v1 import types_pb2
from plasmavmc.types import Scope

Value = TypeVar("Value", bound=StrEnum)
Number = TypeVar("Number", bound=int)

NO_SCOPE = Scope("", "")
"""An empty scope of a request: the caller's only one."""
MAX_TEXT = 4096
MAX_ENTRIES = 4096
MAX_LABELS = 64
MAX_LABEL = 256
MAX_DURATION_S = 24 * 3600
_NANOS = 10**9
_SCOPE_PART = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")


def text(field: str, value: str, most: int = MAX_TEXT) -> str:
    """Return `value` if it has no NUL and at most so many characters.

    Raises:
        InvalidSpecError: it has.
    """
    if "\0" in value:
        raise InvalidSpecError(field, "a NUL character is in it")
    if len(value) > most:
        raise InvalidSpecError(field, f"it has {len(value)} characters; at most {most} are taken")
    return value


def texts(field: str, values: Iterable[str]) -> tuple[str, ...]:
    """A list of texts; raises as `text`, and where it is too long."""
    found = tuple(text(f"{field}[{index}]", value, most=128 * 1024) for index, value in enumerate(values))
    if len(found) > MAX_ENTRIES:
        raise InvalidSpecError(field, f"it has {len(found)} entries; at most {MAX_ENTRIES} are taken")
    return found


def labels(field: str, values: Mapping[str, str]) -> dict[str, str]:
    """Labels; raises as `text`, and where there are too many."""
    if len(values) > MAX_LABELS:
        raise InvalidSpecError(field, f"{len(values)} labels; at most {MAX_LABELS} are taken")
    return {
        text(field, name, MAX_LABEL): text(f"{field}[{name[:40]!r}]", value, MAX_LABEL)
        for name, value in values.items()
    }


def scope_to_pb(scope: Scope) -> types_pb2.Scope:
    return types_pb2.Scope(org=scope.org, project=scope.project)


def scope_from_pb(field: str, message: types_pb2.Scope) -> Scope:
    """A scope; an empty one is `NO_SCOPE`.

    Raises:
        InvalidSpecError: it is half, or its parts are no names.
    """
    scope = Scope(message.org, message.project)
    if scope == NO_SCOPE:
        return scope
    for part, value in (("org", scope.org), ("project", scope.project)):
        if not _SCOPE_PART.fullmatch(value):
            raise InvalidSpecError(f"{field}.{part}", "1 to 64 characters of a-z, 0-9, - and _ are needed")
    return scope


def time_to_pb(seconds: float) -> Timestamp:
    whole, nanos = _split(seconds)
    return Timestamp(seconds=whole, nanos=nanos)


def time_from_pb(message: Timestamp) -> float:
    return (message.seconds * _NANOS + message.nanos) / _NANOS


def duration_to_pb(seconds: float) -> Duration:
    whole, nanos = _split(seconds)
    return Duration(seconds=whole, nanos=nanos)


def duration_from_pb(field: str, message: Duration) -> float:
    """Seconds.

    Raises:
        InvalidSpecError: below zero, or more than a day.
    """
    seconds = (message.seconds * _NANOS + message.nanos) / _NANOS
    if not 0 <= seconds <= MAX_DURATION_S:
        raise InvalidSpecError(field, f"0 to {MAX_DURATION_S} seconds are taken")
    return seconds


def _split(seconds: float) -> tuple[int, int]:
    """Whole seconds and nanoseconds. The difference is exact, so nothing of a double is lost."""
    whole = math.floor(seconds)
    nanos = round((seconds - whole) * _NANOS)
    return (whole + 1, 0) if nanos == _NANOS else (whole, nanos)


def enum_to_pb(value: StrEnum, prefix: str, number_of: Callable[[str], Number]) -> Number:
    """The number of a value in the schema, where its name is `PREFIX_` and its own name."""
    return number_of(f"{prefix}_{value.name}")


def enum_from_pb(field: str, kind: type[Value], names: Mapping[int, str], number: int, prefix: str) -> Value:
    """The value that a number of the schema means. `names` are the schema's, by number.

    Raises:
        InvalidSpecError: unspecified, or none that we know.
    """
    name = names.get(number, "").removeprefix(f"{prefix}_")
    if name not in kind.__members__:
        raise InvalidSpecError(field, f"choose one of: {', '.join(f'{prefix}_{known}' for known in kind.__members__)}")
    return kind[name]
