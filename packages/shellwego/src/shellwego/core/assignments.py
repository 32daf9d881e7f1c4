"""What a node is told to run, and what it tells back: the two messages of the uplink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shellwego.core.apps import Check, RestartPolicy
from shellwego.core.backups import BackupOrder, ObservedBackup
from shellwego.core.destinations import Destination
from shellwego.core.instances import Observed
from shellwego.core.nodes import NodeFacts
from shellwego.core.openings import Ingress
from shellwego.core.peers import PeerNode
from shellwego.core.replicas import ObservedReplica, ReplicaOrder
from shellwego.core.sensitive import Sensitive
from shellwego.core.traffic import NodeTraffic
from shellwego.core.volumes import ObservedVolume


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadMount:
    """A volume of this node, and where a VM has it."""

    volume_id: str
    name: str
    """As people call it."""
    destination: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Everything a VM of the instance needs, resolved: no name to look up, no default to guess."""

    organization_id: str
    project_id: str
    network_id: str
    app_id: str
    app_name: str
    process: str
    release: int
    image_digest: str
    command: tuple[str, ...] | None
    entrypoint: tuple[str, ...] | None
    env: Mapping[str, str]
    memory_bytes: int
    cpu_milli: int
    vcpus: int
    disk_bytes: int
    port: int
    """The service port; 0 where the process has none."""
    checks: tuple[Check, ...]
    restart: RestartPolicy
    stop_signal: str | None
    stop_grace_s: float
    backend: str | None = None
    secrets: tuple[str, ...] = ()
    """Variables whose values the agent asks for just before it starts a VM; they are never in an assignment."""
    mounts: tuple[WorkloadMount, ...] = ()
    network_number: int = 0
    private_prefix: str = ""
    """The platform's /48, in which the number counts; empty: it has no private network."""
    egress: tuple[Destination, ...] | None = None
    """What its VM may open connections to, also one that runs already; None: whatever is not closed to every VM."""
    ingress: Ingress = None
    """What VMs of its project may open to it, likewise. They are known by the ids of their apps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One instance on this node. What is not in the list must not be there."""

    instance_id: str
    workload: Workload
    present: bool
    """False: stop it gracefully, and say when it is gone."""
    asleep: bool = False
    """While it is present: put it on disk and leave it there; False wakes it."""
    memory_of: str = ""
    """It does not begin by itself: it goes on with the memory of this instance, which another node has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOrder:
    """A snapshot of a volume: to be there, or to go."""

    snapshot_id: str
    present: bool = True
    made: bool = False
    """It was there: where it is missing it is lost, and is not taken again."""
    freeze: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeOrder:
    """A volume of this node. Unlike an instance one that is not named is left alone: nothing destroys data by silence."""

    volume_id: str
    size_bytes: int
    encrypted: bool = False
    """What is stored of it is ciphertext; its key is asked for, and is never in an assignment."""
    present: bool = True
    """False: destroy it, and say when it is gone."""
    made: bool = False
    """It was there: where it is missing it is lost, and is not made again."""
    source_snapshot_id: str = ""
    """Of another volume of this node: what it begins as a copy of."""
    source_backup_id: str = ""
    """What it is made of, wherever that was taken."""
    restore_snapshot_id: str = ""
    """Put it back to this snapshot of its own, once; empty: do not."""
    restore: int = 0
    """The number of that restore."""
    lease_s: float = 0.0
    """It may live twice: whatever has it here ends so long after the last report that was answered (`core.volumeleases`); 0:
    it has no lease."""
    snapshots: tuple[SnapshotOrder, ...] = ()
    replicas: Mapping[str, int] = field(default_factory=dict)
    """By replica that other nodes keep of it: the round that it holds. Markers of earlier ones, and of others, go."""
    closed: bool = False
    """No VM that mounts it begins: it is about to be another node's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignments:
    """All that a node should hold. The agent keeps the highest epoch it saw and refuses older ones."""

    node_id: str
    epoch: int
    items: tuple[Assignment, ...] = ()
    peers: tuple[PeerNode, ...] = ()
    """The nodes to which there is a way from this one, and which may open connections to its VMs."""
    key_step: int = 0
    """How far the exchange of keys between nodes is (`core.peers`)."""
    names_version: str = ""
    """Of the names that guests there may ask for, which are fetched apart; empty: there are none to fetch."""
    volumes: tuple[VolumeOrder, ...] = ()
    backups: tuple[BackupOrder, ...] = ()
    """To be taken, or checked, here."""
    ports_version: str = ""
    """Of the published ports at which each node answers, which are fetched apart; empty: the server tells of none."""
    replicas: tuple[ReplicaOrder, ...] = ()
    """Copies that are kept here of volumes that live elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node saw. `instances` holds those that changed, and all of them after a registration.

    Reports are idempotent; the server ignores those of an older epoch, or of a sequence not above the last.
    """

    node_id: str
    epoch: int
    sequence: int
    facts: NodeFacts
    instances: Mapping[str, Observed] = field(default_factory=dict)
    volumes: Mapping[str, ObservedVolume] = field(default_factory=dict)
    """As the instances."""
    backups: Mapping[str, ObservedBackup] = field(default_factory=dict)
    """As the instances."""
    replicas: Mapping[str, ObservedReplica] = field(default_factory=dict)
    """As the instances."""
    traffic: NodeTraffic | None = None
    """What its VMs sent and received; None: that was not looked at since the last report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a node sends at its start; the answer to it is its id and its current epoch."""

    name: str
    facts: NodeFacts
    known_node_id: str = ""
    known_epoch: int = 0
    joined: bool = False
    """It has a key of its own, so it is known already, or was removed. Not the node's to say: servers set it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsRequest:
    """What a node asks just before it starts a VM of an instance that was assigned to it."""

    node_id: str
    epoch: int
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretValues:
    """The answer: variable → value. It is kept in memory only, on both sides."""

    values: Mapping[str, Sensitive]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeKeyRequest:
    """What a node asks before it makes or opens an encrypted volume that is to be there."""

    node_id: str
    epoch: int
    volume_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeKey:
    """The answer. It is kept in memory only, on both sides."""

    key: Sensitive
