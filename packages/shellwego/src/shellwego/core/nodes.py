"""Nodes: hosts with an agent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from shellwego.core.errors import FieldError
from shellwego.core.images import ImageKind

DISK_STEP = 64 << 20
"""Sizes of a disk are noted anew when they moved by so many bytes: they jitter by themselves, and every note is a write."""
MAX_LABELS = 64
MAX_IMAGES = 64
"""Of those that a node has, so many are told: each costs memory where all nodes are known."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?", re.ASCII)
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_PLACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
ROADS = (BUS, LINK) = ("bus", "link")
"""On which hints come to a node that joined: over NATS, or over its TLS link to the servers."""
MOVES_AT_A_TIME = 10
"""So many instances leave a node at a time, unless somebody says otherwise."""


CPU_OVERCOMMIT, DISK_OVERCOMMIT = 16, 8
"""CPU is a share, and writable layers are sparse: so many times over both are promised unless a node says otherwise."""
MAX_OVERCOMMIT = 64


class Underlay(StrEnum):
    """How packets for the VMs of a node travel there from other hosts."""

    PLAIN = "plain"
    """As they are; all hosts are on one link."""
    VXLAN = "vxlan"
    """In UDP datagrams from host to host, in clear."""
    WIREGUARD = "wireguard"
    """In UDP datagrams that are encrypted, between nodes that all have it."""


class NodeHealth(StrEnum):
    READY = "ready"
    SUSPECT = "suspect"
    DOWN = "down"


class Scheduling(StrEnum):
    OPEN = "open"
    CORDONED = "cordoned"
    """Gets nothing new."""
    DRAINING = "draining"
    """Gets nothing new, and is emptied."""
    DRAINED = "drained"
    """Gets nothing new, and is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOrder:
    """How a node is to be emptied."""

    since: float
    deadline: float | None = None
    """When what is left is told, or stopped where `force`; None: it takes as long as it takes."""
    force: bool = False
    parallel: int = MOVES_AT_A_TIME
    """So many of its instances move at a time."""
    volumes: bool = False
    """The volumes that live there go to other nodes, too."""
    overdue: bool = False
    """The deadline has passed, and that was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A VMM that this node offers; `probing` while its probe still boots its guest, `failed` with a reason."""

    name: str
    status: str
    """`ready`, `probing` or `failed`."""
    acceleration: str = ""
    isolation: str = ""
    reason: str = ""
    max_vcpus: int = 0
    max_memory_bytes: int = 0
    suspend: bool = False
    """Its VMs can be put on disk, and woken."""
    volumes: bool = False
    """Its VMs can be given volumes of this node."""
    encryption: bool = False
    """Those can be encrypted."""
    fences: bool = False
    """What has a volume is killed by the host when its time is over, whoever else lives then."""
    snapshot_host: tuple[tuple[str, str], ...] = ()
    """What the memory of a VM on disk depends on here, as names with words, by name: it can be woken where all of them are
    the same. Empty: it can be moved nowhere, or the node does not tell."""

    @property
    def only_by_name(self) -> bool:
        """It runs no Linux system, so an app whose config names no backend is not placed for it."""
        return self.isolation == "wasm-sandbox"

    def runs(self, kind: ImageKind) -> bool:
        """Whether it can run what an image holds."""
        return self.only_by_name == (kind is ImageKind.WASM)

    def serves(self, name: str | None) -> bool:
        """Whether it is meant by a config that names this backend, or none."""
        return self.name == name or (name is None and not self.only_by_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What a node says about itself."""

    hostname: str
    version: str
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    """What the disks of VMs could ever have here, were nothing else on it."""
    backends: tuple[Backend, ...] = ()
    confinement: str = ""
    warnings: tuple[str, ...] = ()
    """What is weaker here than it should be, in plain words (emulated CPU, no cgroups)."""
    subnet: str = ""
    """Of its VMs; empty: it does not tell."""
    address: str = ""
    """By which other hosts reach it; empty: it does not tell."""
    underlay: Underlay = Underlay.PLAIN
    tunnel_keys: tuple[str, ...] = ()
    """Of WireGuard, the two public keys by which other nodes know it now; they change."""
    tunnel_port: int = 0
    """Of WireGuard, the first of two UDP ports."""
    hints: str = ""
    """By which road it hears hints: `bus` or `link` (its TLS link to the servers); empty: within the platform's process."""
    disk_free_bytes: int | None = None
    """What disks may have now; None: it does not tell, all of `disk_bytes`."""
    cpu_overcommit: int = CPU_OVERCOMMIT
    disk_overcommit: int = DISK_OVERCOMMIT
    images: tuple[str, ...] = ()
    """Manifest digests of images that are built there, those used last, `MAX_IMAGES` at most; in the order of their text."""
    replicas: bool = False
    """It keeps copies of other nodes' volumes, and sends those of its own."""

    @property
    def room_on_disk(self) -> int:
        """Bytes of disk for whatever comes next."""
        return self.disk_bytes if self.disk_free_bytes is None else min(self.disk_free_bytes, self.disk_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """How much of a host its operator lets VMs have."""

    cpu_overcommit: int = CPU_OVERCOMMIT
    disk_overcommit: int = DISK_OVERCOMMIT
    reserved_memory_bytes: int = 0
    """Kept for the host, beside what the engine itself leaves to it."""

    def of(self, facts: NodeFacts) -> NodeFacts:
        """What of the host's facts the node tells."""
        return replace(
            facts,
            cpu_overcommit=self.cpu_overcommit,
            disk_overcommit=self.disk_overcommit,
            memory_bytes=max(facts.memory_bytes - self.reserved_memory_bytes, 0),
        )


WHOLE = Offer()


def steady(told: NodeFacts, known: NodeFacts) -> NodeFacts:
    """The facts as told, but with the known sizes of the disk where they moved by less than `DISK_STEP`."""
    disk, free = told.disk_bytes, told.disk_free_bytes
    if abs(disk - known.disk_bytes) < DISK_STEP:
        disk = known.disk_bytes
    if free is not None and known.disk_free_bytes is not None and abs(free - known.disk_free_bytes) < DISK_STEP:
        free = known.disk_free_bytes
    return replace(told, disk_bytes=disk, disk_free_bytes=free)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    id: str
    name: str
    region: str = "local"
    zone: str = "local"
    labels: Mapping[str, str] = field(default_factory=dict)
    subnet: str = ""
    facts: NodeFacts
    health: NodeHealth = NodeHealth.READY
    scheduling: Scheduling = Scheduling.OPEN
    drain: DrainOrder | None = None
    """While it is emptied."""
    epoch: int = 1
    leases_over_epoch: int = 0
    """The last epoch in which it was silent for so long that no lease of a volume can be in force there."""
    last_heard_at: float
    """By the control plane's own clock."""
    ready_since: float | None = None
    """Since when it was heard without a break; None before the first one."""
    downs: tuple[float, ...] = ()
    """When it was judged down of late, the oldest first."""
    flapping_since: float | None = None
    """It goes down again and again, so it gets nothing new until it was steady (`core.liveness`)."""
    tunnel_keys_since: tuple[float, ...] = ()
    """Since when it has each of its keys of WireGuard (`facts.tunnel_keys`)."""
    unreached: str = ""
    """Why no other node has a way to its VMs, and the remedy (`core.peers`); empty: they have one, or need none."""
    created_at: float
    version: int = 1

    @property
    def leases_over(self) -> bool:
        """Nothing runs there that has a volume under a lease (`core.volumeleases`). Whenever it is heard and lost again,
        there is another epoch."""
        return self.health is NodeHealth.DOWN and self.leases_over_epoch == self.epoch

    @property
    def dependable(self) -> bool:
        """It may get something new, and is not known to go down again and again."""
        ready = self.health is NodeHealth.READY and self.scheduling is Scheduling.OPEN
        return ready and self.flapping_since is None


Zone = tuple[str, str]
"""Region and zone: two regions may name their zones alike."""


def zone_of(node: Node) -> Zone:
    """What balance between zones is about."""
    return node.region, node.zone


def label_faults(labels: Mapping[str, str]) -> list[FieldError]:
    """What is wrong with the labels of a node, by field: names and values are short, and have no characters that mean
    something elsewhere."""
    faults = [] if len(labels) <= MAX_LABELS else [FieldError("labels", "too-many", f"at most {MAX_LABELS} labels")]
    for name, value in sorted(labels.items()):
        if not _LABEL.fullmatch(name):
            text = "a label's name has 1 to 63 lower-case letters, digits and ./_-, the first and last no sign"
            faults.append(FieldError(f"labels.{name[:80]}", "bad-name", text))
        elif not _VALUE.fullmatch(value):
            text = "a label's value has at most 63 letters, digits and ._-, the first and last no sign"
            faults.append(FieldError(f"labels.{name}", "bad-value", text))
    return faults


def place_faults(places: Mapping[str, str]) -> list[FieldError]:
    """What is wrong with a region or a zone, by field."""
    text = "1 to 63 lower-case letters, digits and hyphens, and no hyphen at either end"
    return [FieldError(field, "bad-name", text) for field, name in places.items() if not _PLACE.fullmatch(name)]
