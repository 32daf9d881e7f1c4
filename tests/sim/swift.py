"""Dataclasses of the platform that are made, and made anew with changes, in a part of the time.

Nearly all that is known is in frozen dataclasses with slots, and a story makes some ten thousand of them. The standard
library sets each field of a new one through a call, since the class refuses to be set, and `replace` asks each field what it
is, every time. Here a new object has a class of the same layout that can be set, until all is in it; then it gets its own.
What comes of it is the same in all: fields, defaults, errors, and that nobody can change it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field
from types import ModuleType
from typing import Any

_OF_THE_PLATFORM = ("shellwego", "plasmavmc", "tests.sim")
_FIELD = dataclasses._FIELD  # type: ignore[attr-defined]
_Copier = Callable[[Any, dict[str, Any]], Any]
_slow_replace = dataclasses.replace
_copiers: dict[type, _Copier] = {}


def hasten(modules: Iterable[ModuleType] | None = None) -> None:
    """Do so in this process; None: for all of the platform that was imported so far."""
    chosen = [module for name, module in sys.modules.items() if name.startswith(_OF_THE_PLATFORM)]
    for module in chosen if modules is None else modules:
        for name, each in list(vars(module).items()):
            if isinstance(each, type) and each.__module__ == module.__name__ and _fits(each):
                _hasten(each)
            elif each is _slow_replace:
                setattr(module, name, _replace)


def _fits(cls: type) -> bool:
    """It is frozen, has slots and an `__init__` that sets each field and does no more, and nothing else begins by that."""
    own = vars(cls)
    if "__dataclass_params__" not in own or "__slots__" not in own or cls in _copiers:
        return False
    plain = all(each._field_type is _FIELD and each.init for each in own["__dataclass_fields__"].values())
    plain = plain and not hasattr(cls, "__post_init__")
    alone = all("__init__" in vars(heir) for heir in cls.__subclasses__())
    return bool(own["__dataclass_params__"].frozen and own["__dataclass_params__"].init and plain and alone)


def _hasten(cls: Any) -> None:
    free = {"__slots__": cls.__slots__, "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    try:
        thawed = type(cls)(cls.__name__, cls.__bases__, free)
    except TypeError:  # a generic one
        return
    fields = dataclasses.fields(cls)
    known: dict[str, Any] = {
        "__frozen": cls,
        "__thawed": thawed,
        "__set": object.__setattr__,
        "__new": object.__new__,
        "__missing": MISSING,
        "__names": frozenset(field.name for field in fields),
    }
    exec("\n".join((*_init(fields, known), *_copy(fields))), known)  # noqa: S102 - as the standard library makes them
    known["__init__"].__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = known["__init__"]
    _copiers[cls] = known["__copy"]


def _init(fields: Iterable[Field[Any]], known: dict[str, Any]) -> list[str]:
    parameters, lines = ["self"], []
    for field in sorted(fields, key=lambda each: bool(each.kw_only)):
        if field.kw_only and "*" not in parameters:
            parameters.append("*")
        name, value = field.name, field.name
        if field.default is not MISSING:
            known[f"__default_{name}"] = field.default
            parameters.append(f"{name}=__default_{name}")
        elif field.default_factory is not MISSING:
            known[f"__factory_{name}"] = field.default_factory
            parameters.append(f"{name}=__missing")
            value = f"__factory_{name}() if {name} is __missing else {name}"
        else:
            parameters.append(name)
        lines.append(f"    self.{name} = {value}")
    thaw, freeze = "    __set(self, '__class__', __thawed)", "    self.__class__ = __frozen"
    return [f"def __init__({', '.join(parameters)}):", thaw, *lines, freeze]


def _copy(fields: Iterable[Field[Any]]) -> list[str]:
    return [
        "def __copy(old, changes):",
        "    new = __new(__thawed)",
        *(f"    new.{field.name} = old.{field.name}" for field in fields),
        "    for name, value in changes.items():",
        "        if name not in __names:",
        "            raise TypeError(f'{__frozen.__name__}.__init__() got an unexpected keyword argument {name!r}')",
        "        __set(new, name, value)",
        "    new.__class__ = __frozen",
        "    return new",
    ]


def _replace(obj: Any, /, **changes: Any) -> Any:
    copier = _copiers.get(obj.__class__)
    return _slow_replace(obj, **changes) if copier is None else copier(obj, changes)
