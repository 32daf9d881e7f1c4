"""What is asked of the engine's host before the platform starts: names, programs, guest assets, reachability."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from plasmavmc.guest.boot import assets_present
from plasmavmc.host.configuration import HelperConfiguration, Listener
from plasmavmc.host.names import installation_key
from plasmavmc.host.run import PACKAGES, PATH
from plasmavmc.host.split import check_reachable

__all__ = [
    "HelperConfiguration",
    "Listener",
    "assets_present",
    "check_reachable",
    "installation_key",
    "missing_programs",
    "packages_of",
]


def missing_programs(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the programs that are not installed."""
    return tuple(name for name in names if shutil.which(name, path=PATH) is None)


def packages_of(names: Sequence[str]) -> tuple[str, ...]:
    """The distribution's packages that hold these programs."""
    return tuple(sorted({PACKAGES.get(name, name) for name in names}))
