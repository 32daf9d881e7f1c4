"""How much a process has to wait for CPU, memory and disk, as the kernel measures it for its cgroup (PSI).

Theory. Only cgroup v2 tells the pressure of a group. On a host whose limits are cgroup v1's, the root helper puts each
VMM into a group of the unified hierarchy besides, where that is mounted: this group limits nothing, and is there to be
read. A process without a group of its own is in the root group, which tells of the whole host; so nothing is told of
it.

Sources: Documentation/accounting/psi.rst, Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from plasmavmc.types import Pressure

_MOUNTS = Path("/proc/self/mounts")
_SOME = re.compile(r"some avg10=([0-9.]+) ")
"""Of the line `some avg10=1.53 avg60=0.87 avg300=0.31 total=1234`."""
_PERCENT = 100


def pressure_of(pid: int) -> Pressure | None:
    """Pressure on the group of a process; None where it has none, or this kernel does not measure it."""
    root = unified_root()
    if root is None:
        return None
    with suppress(OSError):
        group = unified_group(Path(f"/proc/{pid}/cgroup").read_text())
        return read_pressure(root / group) if group else None
    return None


def unified_group(text: str) -> str:
    """The group of the unified hierarchy in the text of /proc/<pid>/cgroup, relative; empty for the root."""
    lines = (line.partition("::") for line in text.splitlines())
    return next((group.strip("/") for number, _, group in lines if number == "0"), "")


def read_pressure(group: Path) -> Pressure | None:
    """What a group's files tell; None where it has none of them."""
    try:
        return Pressure(*(_some(group / f"{resource}.pressure") for resource in ("cpu", "memory", "io")))
    except (OSError, ValueError):
        return None


@cache
def unified_root() -> Path | None:
    """Where this host has the unified hierarchy mounted."""
    with suppress(OSError):
        mounts = (line.split() for line in _MOUNTS.read_text().splitlines())
        return next((Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"), None)
    return None


def _some(path: Path) -> float:
    """`avg10` of the first line. Raises `ValueError`: it has none."""
    match = _SOME.match(path.read_text())
    if match is None:
        raise ValueError(f"{path} tells no pressure")
    return float(match[1]) / _PERCENT
