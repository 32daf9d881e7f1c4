"""Entities and rows, for whatever values entities may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import StrEnum
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shellwego.core.events import Event
from shellwego.drivers.store.rows import RowMapper
from shellwego.drivers.store.rules import ENTITIES

PLAIN: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=8),
    bool: st.booleans(),
    type(None): st.none(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of any type that an entity's field may have."""
    arguments = get_args(hint)
    if isinstance(hint, UnionType):
        return st.one_of(*map(values, arguments))
    if get_origin(hint) is tuple and Ellipsis not in arguments:
        return st.tuples(*map(values, arguments))
    if get_origin(hint) is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if get_origin(hint) is Mapping:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)
    if isinstance(hint, type) and is_dataclass(hint):
        return st.builds(hint, **{name: values(kind) for name, kind in get_type_hints(hint).items()})
    if issubclass(hint, StrEnum):
        return st.sampled_from(hint)
    if hint is bytes:
        return st.binary(max_size=50)
    return PLAIN[hint]


@pytest.mark.parametrize("table", ENTITIES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_an_entity_is_the_same_after_the_way_through_a_row(table: str, data: st.DataObject) -> None:
    entity = data.draw(values(ENTITIES[table]))
    mapper: RowMapper[Any] = RowMapper(ENTITIES[table])
    row = mapper.to_row(entity)
    assert all(type(value) in PLAIN for value in row.values())
    assert mapper.to_entity([row[name] for name in mapper.names]) == entity


def test_any_kind_of_mapping_can_be_stored() -> None:
    mapper = RowMapper(Event)
    event = Event(id="evt_1", time=1.0, type="t", resource="r", data=MappingProxyType({"name": "hello"}))
    assert mapper.to_row(event)["data"] == '{"name":"hello"}'


def test_json_of_another_version_is_read_with_defaults_and_without_what_is_unknown() -> None:
    mapper: RowMapper[Any] = RowMapper(ENTITIES["releases"])
    row: dict[str, Any] = {"config": '{"image":"hello","invented":1}', "created_at": 1.0}
    release = mapper.to_entity([row.get(name, "") for name in mapper.names])
    assert release.config.image == "hello"
    assert release.config.drain_timeout_s == 30.0
