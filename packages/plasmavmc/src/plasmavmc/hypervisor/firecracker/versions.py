"""Which release of Firecracker can do what.

Theory. An unknown field is an error, so what a body may hold depends on the release, which is asked first (`GET /version`).
A change that was carried back to older lines has several beginnings, one for each line. A release later than those we know
counts as the newest we know: fields have been added, and none of ours was taken away, from 1.12 to 1.16.

Source: the tags v1.12.0 to v1.16.1 of Firecracker; facts of each are held against the bodies that we send in
`tests/contract/test_firecracker_bodies.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from plasmavmc.errors import HostError

_NUMBERS = re.compile(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:-[0-9A-Za-z.+-]{1,64})?")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


OLDEST = Version(1, 12, 0)
"""Older ones may work, and nobody looked."""


class Ability(StrEnum):
    """Something that not every release has."""

    TRACK_DIRTY_ON_LOAD = "track-dirty-on-load"
    """`track_dirty_pages` when a snapshot is loaded; before, its name was `enable_diff_snapshots`."""
    DIFF_WITHOUT_TRACKING = "diff-without-tracking"
    """A diff snapshot of a VM whose dirty pages were not tracked: what is resident is taken."""
    CLOCK_REALTIME = "clock-realtime"
    """A restored guest's monotonic clock stands still unless it is told to move on; before, it jumped."""


BEGINNINGS: Mapping[Ability, tuple[Version, ...]] = {
    Ability.TRACK_DIRTY_ON_LOAD: (Version(1, 13, 0),),
    Ability.DIFF_WITHOUT_TRACKING: (Version(1, 13, 0),),
    Ability.CLOCK_REALTIME: (Version(1, 14, 4), Version(1, 15, 1), Version(1, 16, 0)),
}
"""The first release of each line (1.14, 1.15, …) that has it; lines after the last one have it from their start."""


def abilities_of(version: Version) -> frozenset[Ability]:
    """What a release can do."""
    return frozenset(ability for ability, beginnings in BEGINNINGS.items() if _has(version, beginnings))


def _has(version: Version, beginnings: tuple[Version, ...]) -> bool:
    line = (version.major, version.minor)
    carried_back = any(version >= first for first in beginnings if (first.major, first.minor) == line)
    return carried_back or line > (beginnings[-1].major, beginnings[-1].minor)


def parse_version(text: str) -> Version:
    """A version as `GET /version` tells it.

    Raises:
        HostError: `firecracker-version`, it is none, or older than `OLDEST`.
    """
    found = _NUMBERS.fullmatch(text)
    if found is None:
        raise HostError("firecracker-version", f"the VMM tells a version that is none: {text[:80]!r}")
    version = Version(*(int(number) for number in found.groups()))
    if version < OLDEST:
        raise HostError(
            "firecracker-version",
            f"Firecracker {version} is older than {OLDEST}",
            resolution=f"install Firecracker {OLDEST} or later, with the jailer of the same release",
        )
    return version
