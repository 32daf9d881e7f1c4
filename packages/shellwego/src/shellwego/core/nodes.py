"""Nodes: hosts with an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class NodeHealth(StrEnum):
    READY = "ready"
    SUSPECT = "suspect"
    DOWN = "down"


class Scheduling(StrEnum):
    OPEN = "open"
    CORDONED = "cordoned"
    DRAINING = "draining"
    DRAINED = "drained"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What a node says about itself."""

    hostname: str
    version: str
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    backends: tuple[Backend, ...] = ()
    confinement: str = ""
    warnings: tuple[str, ...] = ()
    """What is weaker here than it should be, in plain words (emulated CPU, no cgroups)."""


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
    epoch: int = 1
    last_heard_at: float
    """By the control plane's own clock."""
    created_at: float
    version: int = 1
