"""Volumes: block storage that outlives VMs and apps; and snapshots, points in a volume's life.

Theory. A volume lives on one node. Which one is decided when an instance that mounts it is placed for the first time, or by
the snapshot that it begins as a copy of. From then on whatever mounts it goes to that node: nothing else has its data. So it
needs no lease, and is never fenced: while its node is silent nobody else could have it, and when the node is back the agent
there sees which VM holds it before it starts another. To another node it goes by a move (`core.moves`), or as its standby
copy becomes the volume; one that has such a copy does have a lease (`core.volumeleases`, `core.promotion`).

It is held by one instance at a time (`instance_id`): from the transaction that places the instance until the one in which
that has ended. The state is not stored for itself; it follows from what is wanted, what the node saw, and who holds it
(`state_of`), and is written with each change so that it can be told.

A volume that its node had once (`made`) is never made anew: where it is missing, its data is, and an empty one in its place
would hide that.

An encrypted volume has a key, drawn when it is asked for; what begins as a copy of its snapshots has the same one. It is
stored sealed (`core.envelope`), under a label of the volume's, and destroyed in the transaction that gives the volume up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from shellwego.core.apps import MIB, AppConfig
from shellwego.core.envelope import Label, SealedValue
from shellwego.core.errors import FieldError
from shellwego.core.moves import BEFORE_SWITCH, RETURN_S, MoveStage, VolumeMove

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
MIN_BYTES, MAX_BYTES = 16 * MIB, 16 << 40
MAX_SNAPSHOTS = 64
"""Of a volume."""
MAX_DESCRIPTION = 200
MAX_MOUNTS = 8
"""Of a config."""
DESTINATION = re.compile(r"(/[A-Za-z0-9._-]{1,255})+")
MAX_DESTINATION = 255
RESERVED = ("/dev", "/proc", "/run", "/sys")
KEY_BYTES = 32
PURPOSE = "volume"
LOST = "node-removed"
"""Reason code of a volume whose node was removed, and its data with it."""


class VolumeState(StrEnum):
    CREATING = "creating"
    """It has a node, which has not made it yet."""
    AVAILABLE = "available"
    """Nobody holds it. It may have no node yet."""
    ATTACHED = "attached"
    """An instance holds it."""
    SNAPSHOTTING = "snapshotting"
    RESTORING = "restoring"
    """It is put back to what it was; nothing that mounts it is placed until then."""
    MOVING = "moving"
    """It goes to another node (`core.moves`), with or without the app that has it."""
    ERROR = "error"
    """Its node cannot make it, or has lost it."""
    DELETING = "deleting"


V = VolumeState
VOLUME_MOVES: Mapping[VolumeState, frozenset[VolumeState]] = {
    V.CREATING: frozenset({V.AVAILABLE, V.ATTACHED, V.ERROR, V.DELETING}),
    V.AVAILABLE: frozenset({V.CREATING, V.ATTACHED, V.SNAPSHOTTING, V.RESTORING, V.MOVING, V.ERROR, V.DELETING}),
    V.ATTACHED: frozenset({V.AVAILABLE, V.SNAPSHOTTING, V.MOVING, V.ERROR}),
    V.SNAPSHOTTING: frozenset({V.AVAILABLE, V.ATTACHED, V.MOVING, V.ERROR}),
    V.RESTORING: frozenset({V.AVAILABLE, V.MOVING, V.ERROR}),
    V.MOVING: frozenset({V.AVAILABLE, V.ATTACHED, V.RESTORING, V.ERROR}),
    V.ERROR: frozenset({V.CREATING, V.AVAILABLE, V.ATTACHED, V.SNAPSHOTTING, V.RESTORING, V.MOVING, V.DELETING}),
    V.DELETING: frozenset(),
}


class SnapshotState(StrEnum):
    CREATING = "creating"
    AVAILABLE = "available"
    ERROR = "error"
    """It could not be taken; there is nothing of it but this row."""
    DELETING = "deleting"


class Presence(StrEnum):
    """What a node says of a volume or snapshot that it was told of."""

    ABSENT = "absent"
    """Not there yet, or not there any more."""
    PRESENT = "present"
    REFUSED = "refused"
    """It cannot be had, and another try would not help."""
    GONE = "gone"
    """It was to go, and is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedSnapshot:
    presence: Presence = Presence.ABSENT
    used_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedVolume:
    """What the node last said of a volume. `sequence` orders reports within an epoch."""

    presence: Presence = Presence.ABSENT
    size_bytes: int = 0
    used_bytes: int = 0
    """What it takes of the host's disk, rounded."""
    restored: int = 0
    """Number of the last restore that was carried out, or refused for good."""
    restore_reason: str = ""
    """Why that one was refused."""
    snapshots: Mapping[str, ObservedSnapshot] = field(default_factory=dict)
    reason: str = ""
    """Why the last order for the volume itself came to nothing."""
    reason_code: str = ""
    leased: bool = False
    """Whatever has it, or begins with it, is killed there when its lease runs out."""
    epoch: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A standby replica became the volume, since the volume's node was lost (`core.promotion`)."""

    from_node_id: str
    to_node_id: str
    at: float
    lost_s: float
    """So many seconds of what was written are not in it, as far as the old node was heard; `from_node_id` has them."""
    by: str
    """Whoever said so; `system`: the policy did."""
    arrived: bool = False
    """The new node has told of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    id: str
    project_id: str
    name: str
    size_bytes: int
    """As wanted; the node may still be about to make it so large."""
    node_id: str = ""
    """Where it lives; empty: nowhere yet."""
    made: bool = False
    """Its node has had it."""
    source_snapshot_id: str = ""
    """What it began as a copy of; empty: it began empty."""
    source_backup_id: str = ""
    """What it is, or was, made of; empty: nothing."""
    instance_id: str = ""
    """Who holds it; empty: nobody."""
    snapshot_id: str = ""
    """The snapshot that is being taken; empty: none."""
    restore_snapshot_id: str = ""
    """What it is being put back to; empty: it is not."""
    restores: int = 0
    """How often that was asked for: each time has its number, and is done once."""
    protected: bool = False
    """It cannot be deleted before this is taken back."""
    encrypted: bool = False
    """What its node stores of it is ciphertext. Never changes."""
    sealed_key: SealedValue | None = field(default=None, repr=False)
    """Of an encrypted one, until it is given up."""
    deleting: bool = False
    move: VolumeMove | None = None
    """The last one, also after its end; None: it never moved."""
    epoch: int = 1
    """Rises whenever a standby replica becomes the volume."""
    promotion: Promotion | None = None
    """The last time that happened; None: it never did."""
    state: VolumeState = VolumeState.AVAILABLE
    observed: ObservedVolume = ObservedVolume()
    created_at: float
    created_by: str
    version: int = 1

    @property
    def busy(self) -> bool:
        """Something is done to it that nothing else may happen beside."""
        return bool(self.snapshot_id or self.restore_snapshot_id or self.deleting or self.moving)

    @property
    def moving(self) -> bool:
        """It goes to another node, and has not arrived."""
        return self.arriving or (self.move is not None and self.move.stage in BEFORE_SWITCH)

    @property
    def arriving(self) -> bool:
        """It is on another node than it was, which has not said so yet."""
        moved = self.move is not None and self.move.stage is MoveStage.ARRIVING
        return moved or (self.promotion is not None and not self.promotion.arrived)

    @property
    def closed(self) -> bool:
        """Nobody may take it now."""
        return self.move is not None and self.move.closed

    def given_back(self, now: float) -> bool:
        """It is where it was before a move stopped whoever had it, and he may have it again: while the move goes on, and for
        `RETURN_S` after it."""
        moved = self.move
        if moved is None or moved.stops == 0 or moved.closed or moved.source_node_id != self.node_id:
            return False
        return moved.ended_at is None or now - moved.ended_at < RETURN_S

    @property
    def lost(self) -> bool:
        """Its data is gone, with its node."""
        return self.observed.reason_code == LOST


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    id: str
    volume_id: str
    project_id: str
    description: str = ""
    size_bytes: int
    """Of the volume, when it was taken."""
    used_bytes: int = 0
    """What its node says that it takes; until then what the volume took; nothing once it is in error. What it shares with
    the volume and with other snapshots counts for each of them."""
    frozen: bool = False
    """The guest's file system was, or is to be, at rest meanwhile."""
    state: SnapshotState = SnapshotState.CREATING
    reason: str = ""
    created_at: float
    created_by: str
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotView:
    """A snapshot as its host has it."""

    snapshot_id: str
    used_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView:
    """A volume as its host has it."""

    volume_id: str
    size_bytes: int
    used_bytes: int = 0
    vm_id: str = ""
    """Which VM has it; empty: none."""
    encrypted: bool = False
    locked: bool = False
    """It is encrypted, and its host has not its key."""
    snapshots: tuple[SnapshotView, ...] = ()


def key_label(volume_id: str, organization_id: str, project_id: str) -> Label:
    """What a volume's key is bound to."""
    return Label(purpose=PURPOSE, subject=volume_id, organization_id=organization_id, project_id=project_id)


def mount_faults(config: AppConfig) -> Iterator[FieldError]:
    """What is wrong with the mounts of a config in themselves. Whether there are such volumes is seen when the release is
    made."""
    if len(config.mounts) > MAX_MOUNTS:
        yield FieldError("mounts", "too-many", f"at most {MAX_MOUNTS}")
    names = {process.name for process in config.processes}
    sources: set[str] = set()
    taken: set[tuple[str, str]] = set()
    for number, mount in enumerate(config.mounts):
        at = f"mounts[{number}]"
        if not NAME.fullmatch(mount.source):
            yield FieldError(f"{at}.source", "bad-name", "no volume can have this name")
        elif mount.source in sources:
            message = f"the volume {mount.source} is mounted already: it can be so once"
            yield FieldError(f"{at}.source", "already-mounted", message)
        if mount.process not in names:
            yield FieldError(f"{at}.process", "no-such-process", f"there is no process “{mount.process[:40]}”")
        yield from _destination_faults(f"{at}.destination", mount.destination)
        if any(_nested(mount.destination, other) for process, other in taken if process == mount.process):
            yield FieldError(f"{at}.destination", "already-mounted", "lies in, or around, that of another mount")
        sources.add(mount.source)
        taken.add((mount.process, mount.destination))


def _destination_faults(at: str, path: str) -> Iterator[FieldError]:
    if not DESTINATION.fullmatch(path) or len(path) > MAX_DESTINATION or {".", ".."} & set(path.split("/")):
        message = (
            f"an absolute path of letters, digits and ._-, at most {MAX_DESTINATION}, without . and .., no / at its end"
        )
        yield FieldError(at, "bad-path", message)
    elif any(_nested(path, own) for own in RESERVED):
        yield FieldError(at, "reserved", f"{', '.join(RESERVED)} are the guest's own")


def _nested(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def state_of(volume: Volume) -> VolumeState:
    """What state follows from everything else that is known of a volume."""
    if volume.deleting:
        return VolumeState.DELETING
    there = volume.observed.presence is Presence.PRESENT
    if volume.node_id and not there and ((volume.made and not volume.arriving) or volume.observed.reason):
        return VolumeState.ERROR
    if volume.moving or volume.restore_snapshot_id or volume.snapshot_id:
        return _busy_state(volume)
    if volume.node_id and not there:
        return VolumeState.CREATING
    return VolumeState.ATTACHED if volume.instance_id else VolumeState.AVAILABLE


def _busy_state(volume: Volume) -> VolumeState:
    if volume.moving:
        return VolumeState.MOVING
    return VolumeState.RESTORING if volume.restore_snapshot_id else VolumeState.SNAPSHOTTING


def restated(volume: Volume) -> Volume:
    """The volume in the state that follows from the rest of it."""
    return replace(volume, state=state_of(volume))


def seen(volume: Volume, observed: ObservedVolume) -> Volume:
    """The row after its node was heard: what was waited for and is there, or was refused, is waited for no more."""
    there = observed.presence is Presence.PRESENT
    restored = volume.restore_snapshot_id and observed.restored >= volume.restores
    taken = observed.snapshots.get(volume.snapshot_id)
    ended = taken is not None and taken.presence in (Presence.PRESENT, Presence.REFUSED)
    promotion = volume.promotion
    if there and promotion is not None:
        promotion = replace(promotion, arrived=True)
    return restated(
        replace(
            volume,
            observed=observed,
            promotion=promotion,
            made=volume.made or there,
            restore_snapshot_id="" if restored else volume.restore_snapshot_id,
            snapshot_id="" if ended else volume.snapshot_id,
        )
    )


def snapshot_seen(snapshot: Snapshot, observed: ObservedSnapshot) -> Snapshot | None:
    """The row after the volume's node was heard; None where there is nothing of it any more."""
    if snapshot.state is SnapshotState.DELETING:
        return None if observed.presence is Presence.GONE else snapshot
    match observed.presence:
        case Presence.PRESENT:
            return replace(snapshot, state=SnapshotState.AVAILABLE, used_bytes=observed.used_bytes, reason="")
        case Presence.REFUSED:
            return snapshot_failed(snapshot, observed.reason)
        case _:
            return snapshot


def snapshot_failed(snapshot: Snapshot, reason: str) -> Snapshot:
    """The row of one that could not be taken, or is not there any more."""
    return replace(snapshot, state=SnapshotState.ERROR, reason=reason, used_bytes=0)
