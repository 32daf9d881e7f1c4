"""Tables of the firewall as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set or map with its elements."""

    kind: str
    type: str
    elements: tuple[str, ...]
    ranges: bool = False
    """Elements are ranges."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the installation's name."""

    sets: Mapping[str, NamedSet]
    chains: Mapping[str, tuple[str, ...]]
    """Rules by chain. What hooks a chain in (`type filter hook …`) comes first, and is no rule."""

    @property
    def frame(self) -> tuple[object, ...]:
        """All but the elements."""
        return {name: (each.kind, each.type, each.ranges) for name, each in self.sets.items()}, self.chains

    @property
    def shape(self) -> dict[str, int]:
        """How much of it there is: elements by set, rules by chain."""
        elements = {name: len(each.elements) for name, each in self.sets.items()}
        return elements | {name: sum(not hooks(rule) for rule in rules) for name, rules in self.chains.items()}


def hooks(rule: str) -> bool:
    """Whether it is what hooks a chain in."""
    return rule.startswith("type ")
