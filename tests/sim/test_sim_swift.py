"""A dataclass that is made by other means is what it would be anyway."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from types import ModuleType
from typing import Any, Generic, TypeVar

import pytest

from tests.sim.swift import hasten

T = TypeVar("T")


def _classes() -> dict[str, Any]:
    """The same each time, so that one set can stay as the standard library made it."""

    @dataclass(frozen=True, slots=True)
    class Place:
        name: str
        size: int = 3
        marks: Mapping[str, int] = field(default_factory=dict)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Room(Place):
        door: str
        open: bool = False

    @dataclass(frozen=True, slots=True)
    class Looked:
        name: str

        def __post_init__(self) -> None:
            if not self.name:
                raise ValueError("no name")

    @dataclass(frozen=True, slots=True)
    class Found(Generic[T]):
        value: T

    @dataclass(slots=True)
    class Open:
        name: str

    class Heir(Looked):
        pass

    return {"Place": Place, "Room": Room, "Looked": Looked, "Found": Found, "Open": Open, "Heir": Heir}


@pytest.fixture
def both() -> tuple[ModuleType, ModuleType]:
    """As they are, and hastened."""
    modules = ModuleType("as_they_are"), ModuleType("hastened")
    for module in modules:
        classes = {name: cls for name, cls in _classes().items()}
        vars(module).update(classes, replace=dataclasses.replace)
        for cls in classes.values():
            cls.__module__ = module.__name__
    hasten([modules[1]])
    return modules


MADE: tuple[Callable[[Any], Any], ...] = (
    lambda all_: all_.Place("a"),
    lambda all_: all_.Place("a", 4, {"x": 1}),
    lambda all_: all_.Place(size=4, name="a"),
    lambda all_: all_.Room("a", door="d"),
    lambda all_: all_.Room("a", 5, door="d", open=True),
    lambda all_: all_.Looked("a"),
    lambda all_: all_.Heir("a"),
    lambda all_: all_.Found(3),
    lambda all_: all_.Open("a"),
    lambda all_: all_.replace(all_.Place("a"), size=9),
    lambda all_: all_.replace(all_.Room("a", door="d"), door="e", name="b"),
    lambda all_: all_.replace(all_.Looked("a"), name="b"),
    lambda all_: all_.replace(all_.Found(3), value=4),
    lambda all_: all_.replace(all_.Open("a"), name="b"),
)


@pytest.mark.parametrize("make", MADE)
def test_what_is_made_is_the_same(both: tuple[ModuleType, ModuleType], make: Callable[[Any], Any]) -> None:
    plain, hastened = map(make, both)
    assert repr(plain) == repr(hastened)
    assert type(hastened) in vars(both[1]).values()
    assert hastened == make(both[1])


WRONG: tuple[Callable[[Any], Any], ...] = (
    lambda all_: all_.Place(),
    lambda all_: all_.Place("a", 1, {}, 2),
    lambda all_: all_.Place("a", shape="round"),
    lambda all_: all_.Room("a", 1, {}, "d"),
    lambda all_: all_.replace(all_.Place("a"), shape="round"),
    lambda all_: all_.Looked(""),
    lambda all_: all_.replace(all_.Looked("a"), name=""),
)


@pytest.mark.parametrize("make", WRONG)
def test_what_is_refused_is_refused(both: tuple[ModuleType, ModuleType], make: Callable[[Any], Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as plain:
        make(both[0])
    with pytest.raises(plain.type) as hastened:
        make(both[1])
    assert str(plain.value).rpartition(".")[2] == str(hastened.value).rpartition(".")[2]


def test_nobody_can_change_what_was_made(both: tuple[ModuleType, ModuleType]) -> None:
    for made in (both[1].Place("a"), both[1].replace(both[1].Place("a"), size=4)):
        with pytest.raises(FrozenInstanceError):
            made.size = 5
        with pytest.raises(FrozenInstanceError):
            del made.size


def test_each_has_what_a_factory_makes_for_itself(both: tuple[ModuleType, ModuleType]) -> None:
    one, other = both[1].Place("a"), both[1].Place("a")
    assert one.marks is not other.marks
    assert both[1].replace(one).marks is one.marks


def test_only_what_fits_is_hastened(both: tuple[ModuleType, ModuleType]) -> None:
    hastened = {name for name in _classes() if "__thawed" in vars(both[1])[name].__init__.__code__.co_names}
    assert hastened == {"Place", "Room"}
