"""Which releases of Firecracker are driven.

Theory. An unknown field is an error, so our bodies hold only what each release knows, from the oldest on. A later one than
those we know is taken: fields have been added, and none of ours was taken away, from 1.12 to 1.16.

Source: the tags v1.12.0 to v1.16.1 of Firecracker; facts of each are held against the bodies that we send in
`tests/contract/test_firecracker_bodies.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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
