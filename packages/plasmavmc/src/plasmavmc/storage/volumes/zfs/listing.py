"""What `zfs get -H -p` tells of an installation's datasets, as values. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from plasmavmc.errors import HostError
from plasmavmc.host.zfs import SEALED_PROPERTY, SIZE_PROPERTY, WHOLE_PROPERTY
from plasmavmc.storage.volumes.backend import StoredSnapshot, StoredVolume

_NONE = "-"


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    size_bytes: int
    referenced: int
    gone: bool
    """It was removed, and is kept for what was cloned from it."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A child of the installation's dataset, by its last name."""

    name: str
    size_bytes: int
    sealed: bool
    referenced: int
    """Bytes that can be reached through it, also where others share them."""
    origin: str
    """`name@snapshot` that it was cloned from; empty: none."""
    whole: bool
    """It is a volume, and not one that is being made or a snapshot that is looked at."""
    receiving: bool = False
    """What it holds itself was given up; its snapshots are whole."""
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def stored(self) -> StoredVolume:
        """As the port tells of it."""
        snapshots = (StoredSnapshot(each.name, each.size_bytes, each.referenced) for each in self.kept)
        return StoredVolume(self.name, self.size_bytes, self.referenced, self.sealed, tuple(snapshots))

    @property
    def kept(self) -> tuple[Snapshot, ...]:
        """Its snapshots that were not removed, by name."""
        return tuple(sorted((each for each in self.snapshots if not each.gone), key=lambda each: each.name))


@dataclass(frozen=True, slots=True)
class Listing:
    available: int
    datasets: Mapping[str, Dataset] = field(default_factory=dict)

    def volume(self, volume_id: str) -> Dataset | None:
        found = self.datasets.get(volume_id)
        return found if found is not None and found.whole else None

    def volumes(self) -> tuple[Dataset, ...]:
        """By name."""
        return tuple(self.datasets[name] for name in sorted(self.datasets) if self.datasets[name].whole)

    def owner(self, snapshot_id: str) -> tuple[Dataset, Snapshot] | None:
        """The volume that a snapshot is of, and it."""
        found = ((each, kept) for each in self.volumes() for kept in each.kept if kept.name == snapshot_id)
        return next(found, None)

    def taken(self, snapshot_id: str) -> bool:
        """Whether a snapshot has this name, be it one that was removed."""
        return any(each.name == snapshot_id for dataset in self.datasets.values() for each in dataset.snapshots)

    def clones(self, name: str) -> tuple[Dataset, ...]:
        """What was cloned from a snapshot of this dataset."""
        return tuple(each for each in self.datasets.values() if each.origin.partition("@")[0] == name)


def parse_listing(text: str) -> Listing:
    """Parse `zfs_look`'s answer: of the installation's dataset, its children, and their snapshots.

    Raises:
        HostError: `storage-error`, it is not understood.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in text.splitlines():
        name, key, value = _fields(line)
        found[name][key] = value
    if not found:
        raise _not_understood("nothing")
    base, *others = sorted(found, key=lambda name: (name.count("/"), name))
    children = [name for name in others if "@" not in name]
    snapshots: dict[str, list[Snapshot]] = defaultdict(list)
    for name in others:
        if "@" in name:
            dataset, _, snapshot = name.partition("@")
            told = found[name]
            gone = told.get("defer_destroy") == "on"
            snapshots[dataset].append(
                Snapshot(snapshot, _number(told, SIZE_PROPERTY), _number(told, "referenced"), gone)
            )
    datasets = (_dataset(name, found[name], snapshots[name]) for name in children)
    return Listing(_number(found[base], "available"), {each.name: each for each in datasets})


def _dataset(name: str, told: Mapping[str, str], snapshots: list[Snapshot]) -> Dataset:
    origin = told.get("origin", _NONE)
    return Dataset(
        _last(name),
        _number(told, SIZE_PROPERTY),
        told.get(SEALED_PROPERTY) == "yes",
        _number(told, "referenced"),
        "" if origin == _NONE else _last(origin),
        told.get(WHOLE_PROPERTY) in ("yes", "receiving"),
        told.get(WHOLE_PROPERTY) == "receiving",
        tuple(snapshots),
    )


def _fields(line: str) -> tuple[str, str, str]:
    name, key, value = (*line.split("\t", 2), "", "")[:3]
    if not value:
        raise _not_understood(line)
    return name, key, value


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _number(told: Mapping[str, str], key: str) -> int:
    value = told.get(key, _NONE)
    if value == _NONE:
        return 0
    if not value.isdecimal():
        raise _not_understood(f"{key} {value}")
    return int(value)


def _not_understood(what: str) -> HostError:
    return HostError("storage-error", "what zfs tells of the volumes is not understood", details=f"{what:.200}")
