"""What the resolver is told: who may ask for which network, and the names of each. Values, and their files.

Two files, each replaced as a whole. `members.json` follows the VMs of this host and is lost at a reboot, as they are.
`names.json` is what names mean; the last one is on disk, so that they are known while nobody is there who could tell them.
A file that is not there, or that cannot be understood, says nothing; what is known already stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from plasmavmc.host.files import sync_directory
from plasmavmc.host.operations import Member

FORMAT = 1
NAMES_FILE, MEMBERS_FILE = "names.json", "members.json"
MAX_FILE = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlace:
    """Where a service is: a name below `internal`, and a port."""

    target: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkNames:
    """The names of one private network, as they stand below `internal`: `web`, `worker.shop`."""

    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Addresses; a name without any is known, and leads nowhere now."""
    services: Mapping[str, tuple[ServicePlace, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names of all networks that have VMs on a host, by network id."""

    networks: Mapping[str, NetworkNames] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Askers:
    """Who may ask: the network id of each VM of this host, by its address."""

    networks: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


T = TypeVar("T", Names, Askers)


def askers_of(members: Mapping[str, Member]) -> Askers:
    """Those of a network's members."""
    return Askers(networks={str(member.ipv4): member.network_id for member in members.values()})


def read_names(directory: Path) -> Names | None:
    """The names that were told last; None where nothing can be learned."""
    return _read(directory / NAMES_FILE, Names)


def read_askers(directory: Path) -> Askers | None:
    """The VMs that were told last; None where nothing can be learned."""
    return _read(directory / MEMBERS_FILE, Askers)


def write_names(directory: Path, names: Names) -> None:
    """Replace the names, so that they outlive a power cut. Raises `OSError`."""
    _write(directory / NAMES_FILE, msgspec.json.encode(names), sync=True)


def write_askers(directory: Path, askers: Askers) -> None:
    """Replace the VMs. Raises `OSError`."""
    _write(directory / MEMBERS_FILE, msgspec.json.encode(askers), sync=False)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(MAX_FILE), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if found.format == FORMAT else None


def _write(path: Path, data: bytes, *, sync: bool) -> None:
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)
    if sync:
        sync_directory(path.parent)
