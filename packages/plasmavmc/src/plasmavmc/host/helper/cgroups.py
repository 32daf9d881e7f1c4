"""Cgroups of an installation: a parent `swg-<key>`, a child for each VM and for HAProxy.

Theory. cgroup v2 is taken where its controllers memory, cpu and pids can be had, else v1 where all three are mounted,
else there are none and the VMM is bound by rlimits; which of them it is, the caller is told (`confinement`). The parent
lies at the root of the hierarchy, not under the service's own cgroup: its place then does not depend on how the platform
was started, so that a later start finds it again.

On a host with limits of v1 and the unified hierarchy beside, a child is made there too, without limits: only there does the
kernel tell the pressure on a VM (`host.pressure`). It is left out where it cannot be made.

A child is made and filled by root; a process joins before it runs its program, so that nothing of it is ever outside.

Traps: a group whose last process or child has just gone is busy for some milliseconds more (a zombie's other threads are
still ending, a child group is dying), so removal is patient; controllers cannot be passed on by a v2 group that holds
processes (so a container's own root fails here, and v1 or none is taken).
Source: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Protocol

from plasmavmc.errors import HostError
from plasmavmc.host.operations import Limits
from plasmavmc.host.processes import kill, read_process

CONTROLLERS = ("memory", "cpu", "pids")
V2, V1, NONE = "cgroup-v2", "cgroup-v1", "rlimits"
_PERIOD_US = 100_000
_REMOVAL_WAIT_S = 0.5
_KILL_WAIT_S = 1.0
_ENDING = (("pids.max", "0"), ("cgroup.kill", "1"))
"""What ends a group: no process forks past what kills those that are listed; and all of them in one step (Linux 5.14)."""
_MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parent group of an installation is: one directory in v2, one for each controller in v1."""

    confinement: str
    parents: tuple[Path, ...] = ()
    watched: Path | None = None
    """One of v2 beside those of v1, to read pressure from."""


class Cgroups(Protocol):
    @property
    def confinement(self) -> str:
        """`cgroup-v2`, `cgroup-v1` or `rlimits`."""

    def make(self, name: str, limits: Limits | None) -> tuple[Path, ...]:
        """Make a child with these limits; the files that a process joins it by writing its pid to."""

    def has(self, name: str) -> bool:
        """Whether there is such a child."""

    def members(self, name: str) -> frozenset[int]:
        """Pids in a child."""

    def children(self) -> frozenset[str]:
        """Names of all children."""

    def end(self, name: str) -> None:
        """Kill all that lives in a child, which is to be removed: nothing begins there any more."""

    def remove(self, name: str) -> bool:
        """Remove a child. False at once where processes live in it; one that is not there is fine."""

    def remove_parent(self) -> None:
        """Remove the parent; it stays where it has children."""


def find_cgroups(parent: str) -> Cgroups:
    """The best kind that this host can give, with the parent made."""
    mounts = parse_mounts(_MOUNTS.read_text())
    for layout in layouts(mounts, parent):
        with suppress(OSError):
            return DirectoryCgroups.prepared(layout)
    return NoCgroups()


def parse_mounts(text: str) -> tuple[tuple[str, Path, frozenset[str]], ...]:
    """The cgroup mounts in /proc/self/mounts as (type, place, options)."""
    fields = (line.split() for line in text.splitlines())
    return tuple(
        (kind, Path(place), frozenset(options.split(",")))
        for _, place, kind, options, *_ in fields
        if kind in ("cgroup", "cgroup2")
    )


def layouts(mounts: tuple[tuple[str, Path, frozenset[str]], ...], parent: str) -> list[Layout]:
    """What could be tried, best first."""
    unified = [Layout(V2, (place / parent,)) for kind, place, _ in mounts if kind == "cgroup2"]
    by_controller = {
        controller: place / parent
        for kind, place, options in mounts
        for controller in CONTROLLERS
        if kind == "cgroup" and controller in options
    }
    complete = len(by_controller) == len(CONTROLLERS)
    places = tuple(dict.fromkeys(by_controller[controller] for controller in CONTROLLERS)) if complete else ()
    watched = unified[0].parents[0] if unified else None
    return [*unified, Layout(V1, places, watched)] if complete else unified


def settings(confinement: str, limits: Limits) -> Mapping[str, str]:
    """The files of a group that set these limits."""
    quota = str(limits.cpu_milli * _PERIOD_US // 1000)
    if confinement == V2:
        return {
            "memory.max": str(limits.memory_bytes),
            "memory.swap.max": "0",
            "cpu.max": f"{quota} {_PERIOD_US}",
            "pids.max": str(limits.pids),
        }
    return {
        "memory.limit_in_bytes": str(limits.memory_bytes),
        "cpu.cfs_period_us": str(_PERIOD_US),
        "cpu.cfs_quota_us": quota,
        "pids.max": str(limits.pids),
    }


_OPTIONAL = frozenset({"memory.swap.max"})
"""Kernels without swap accounting lack it."""


class DirectoryCgroups:
    """Version 1 or 2: the same but for where and what is written."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @classmethod
    def prepared(cls, layout: Layout) -> DirectoryCgroups:
        """Make the parents, able to hold limited children.

        Raises:
            OSError: this kind is not to be had here.
        """
        if layout.confinement == V2:
            _delegate(layout.parents[0].parent)
        for parent in layout.parents:
            parent.mkdir(exist_ok=True)
        if layout.confinement == V2:
            _delegate(layout.parents[0])
        if layout.watched is not None:
            with suppress(OSError):
                layout.watched.mkdir(exist_ok=True)
                return cls(Layout(layout.confinement, (*layout.parents, layout.watched)))
        return cls(layout)

    @property
    def confinement(self) -> str:
        return self._layout.confinement

    def make(self, name: str, limits: Limits | None) -> tuple[Path, ...]:
        places = [parent / name for parent in self._layout.parents]
        try:
            for place in places:
                place.mkdir(exist_ok=True, parents=True)
            for file, value in (settings(self.confinement, limits) if limits else {}).items():
                _set(places, file, value)
        except OSError as error:
            self.remove(name)
            raise HostError("host-cgroup", f"the cgroup {name} cannot be made: {error}") from error
        return tuple(place / "cgroup.procs" for place in places)

    def has(self, name: str) -> bool:
        return any((parent / name).is_dir() for parent in self._layout.parents)

    def members(self, name: str) -> frozenset[int]:
        found: set[int] = set()
        for parent in self._layout.parents:
            with suppress(FileNotFoundError, OSError):
                found.update(int(pid) for pid in (parent / name / "cgroup.procs").read_text().split())
        return frozenset(found)

    def children(self) -> frozenset[str]:
        return frozenset(
            child.name
            for parent in self._layout.parents
            if parent.is_dir()
            for child in parent.iterdir()
            if child.is_dir()
        )

    def end(self, name: str) -> None:
        places = [parent / name for parent in self._layout.parents]
        for file, value in _ENDING:
            for place in places:
                with suppress(OSError):
                    if (place / file).exists():
                        (place / file).write_text(value)
        deadline = monotonic() + _KILL_WAIT_S
        for pid in self.members(name):
            if (process := read_process(pid)) is not None:
                kill(process.id, timeout_s=max(0.0, deadline - monotonic()))

    def remove(self, name: str) -> bool:
        deadline = monotonic() + _REMOVAL_WAIT_S
        while not all([_rmdir(parent / name) for parent in self._layout.parents]):
            if monotonic() > deadline or any(read_process(pid) for pid in self.members(name)):
                return False
            sleep(0.005)
        return True

    def remove_parent(self) -> None:
        self.remove("")


class NoCgroups:
    """A host that gives none."""

    confinement = NONE

    def make(self, name: str, limits: Limits | None) -> tuple[Path, ...]:
        return ()

    def has(self, name: str) -> bool:
        return False

    def members(self, name: str) -> frozenset[int]:
        return frozenset()

    def children(self) -> frozenset[str]:
        return frozenset()

    def end(self, name: str) -> None:
        return

    def remove(self, name: str) -> bool:
        return True

    def remove_parent(self) -> None:
        return


def _delegate(group: Path) -> None:
    """Let the children of a v2 group have our controllers.

    Raises:
        OSError: the group lacks one, or holds processes itself.
    """
    enabled = (group / "cgroup.subtree_control").read_text().split()
    missing = [controller for controller in CONTROLLERS if controller not in enabled]
    if missing:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in missing))


def _set(places: list[Path], file: str, value: str) -> None:
    """Set a limit in the one group that has it."""
    holders = [place / file for place in places if (place / file).exists()]
    if not holders and file not in _OPTIONAL:
        raise FileNotFoundError(errno.ENOENT, "no such limit", file)
    for holder in holders:
        holder.write_text(value)


def _rmdir(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True
