"""Entities to rows and back. Which fields are columns of their own type and which are JSON follows from the dataclass.

Rows are trusted to be what this module wrote, but not to be of this version: JSON that lacks a field gets its default, and
fields of a newer version are passed over, so that two versions of the platform may share a database during an upgrade.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import msgspec

E = TypeVar("E")

_PLAIN = (str, int, float, bool)
_NUMBERED = (float, bool)
"""What a database may give as a whole number."""
_encode_json = msgspec.json.Encoder(enc_hook=dict).encode  # for mappings that are not dictionaries


@dataclass(frozen=True, slots=True)
class _Codec:
    to_column: Callable[[Any], Any] | None
    to_field: Callable[[Any], Any] | None


def _codec(hint: Any) -> _Codec:
    """How a field of this type is stored; None stands for "as it is"."""
    members = [kind for kind in get_args(hint) if kind is not NoneType]
    optional = isinstance(hint, UnionType) and len(members) < len(get_args(hint))
    kind = members[0] if optional and len(members) == 1 else hint
    if kind in _PLAIN:
        convert = kind if kind in _NUMBERED else None
        return _Codec(None, _unless_none(convert) if convert and optional else convert)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _Codec(str, kind)
    decode = msgspec.json.Decoder(kind).decode
    return _Codec(_unless_none(_to_json), _unless_none(decode)) if optional else _Codec(_to_json, decode)


def _to_json(value: Any) -> str:
    return _encode_json(value).decode()


def _unless_none(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


class RowMapper(Generic[E]):
    """Turns one kind of entity into column values and back."""

    def __init__(self, entity: type[E]) -> None:
        self._build: Callable[..., E] = entity
        hints = get_type_hints(entity)
        names = [field.name for field in fields(entity)]  # type: ignore[arg-type]  # every entity is a dataclass
        codecs = {name: _codec(hints[name]) for name in names}
        self.names: Sequence[str] = names
        """Field and column names, in the order of `to_entity`'s values."""
        self._columns = [(name, codecs[name].to_column) for name in names]
        self._fields = [(name, codecs[name].to_field) for name in names]

    def to_row(self, entity: E) -> Mapping[str, Any]:
        """Column name → value."""
        return {
            name: convert(getattr(entity, name)) if convert else getattr(entity, name)
            for name, convert in self._columns
        }

    def to_entity(self, values: Sequence[Any]) -> E:
        """The entity of a row, its values ordered as `names`."""
        return self._build(
            **{
                name: convert(value) if convert else value
                for (name, convert), value in zip(self._fields, values, strict=True)
            }
        )
