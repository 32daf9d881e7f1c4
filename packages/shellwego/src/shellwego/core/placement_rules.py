"""Where an app's instances may go, how they are laid out there, and how much they matter: the user's part of placement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

TAINT = "taint/"
"""How a label's name begins that keeps instances away, unless their app tolerates it: `taint/gpu=yes`."""


DEFAULT_PRIORITY = 50
MOST_PRIORITY = 100


class Spread(StrEnum):
    """What instances of one process are kept apart by, where there is a choice."""

    ZONE = "zone"
    """Over zones first, then over nodes, then to the node with the most memory free."""
    NODE = "node"
    """Over nodes, wherever they stand, then to the node with the most memory free."""
    NONE = "none"
    """Not at all: to the fullest node that has room, so that few nodes are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRules:
    """Conditions that a node must meet, and the layout among those that do."""

    region: str = ""
    """The node's region; empty: any."""
    zone: str = ""
    """The node's zone; empty: any. Zones of equal name in several regions are meant alike unless `region` is given."""
    require: Mapping[str, str] = field(default_factory=dict)
    """Labels that the node must have, with their values."""
    tolerate: Mapping[str, str] = field(default_factory=dict)
    """Taints that the node may have, with their values, by name without `taint/`."""
    spread: Spread = Spread.ZONE
    priority: int = DEFAULT_PRIORITY
    """From 0 to `MOST_PRIORITY`, as far as the organization's limit allows: where no node fits, instances of clearly lower
    priority may have to make room (`core.preemption`)."""

    @property
    def binding(self) -> bool:
        """They say which nodes it may be, beside how it is spread over them, and what it may push aside."""
        return bool(self.region or self.zone or self.require or self.tolerate)


ANYWHERE = PlacementRules()
