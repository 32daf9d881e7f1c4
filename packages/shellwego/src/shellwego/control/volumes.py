"""Volumes of a project: made, resized, kept in snapshots, put back, deleted.

These use cases say what is wanted; the agent of the node on which a volume lives makes it so, and what it saw comes back by
its reports (`volumereports`). What a volume holds nobody but its VM reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.config import refuse
from shellwego.control.facts import node_usage
from shellwego.control.holds import tell
from shellwego.control.mounts import users, volume_named
from shellwego.control.quotas import charge
from shellwego.control.replicareports import drop_replica, replicas_of
from shellwego.control.scopes import missing, project_of
from shellwego.control.sealing import Sealing, keep
from shellwego.control.unit import Unit
from shellwego.control.volumereports import destroy_key, forget, snapshots_of
from shellwego.core.admission import encryption_fault
from shellwego.core.apps import MIB
from shellwego.core.backups import BackupState
from shellwego.core.errors import ConflictError, FieldError, QuotaError
from shellwego.core.placement import NOTHING, room_on
from shellwego.core.tenancy import Project
from shellwego.core.volumes import (
    MAX_BYTES,
    MAX_DESCRIPTION,
    MAX_SNAPSHOTS,
    MIN_BYTES,
    NAME,
    Presence,
    Snapshot,
    SnapshotState,
    Volume,
    restated,
)
from shellwego.ports.store import Transaction, eq


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeWish:
    name: str
    size_bytes: int | None = None
    """None: as large as the snapshot."""
    snapshot_id: str = ""
    """What it is to begin as a copy of; empty: it begins empty."""
    protected: bool = False
    encrypted: bool | None = None
    """None: an empty one is, and a copy is what its snapshot is."""
    named_in: str = "name"
    """The field of the request that has its name, for a refusal to point at."""


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """Whether a volume that is to be made has a key, and whose."""

    encrypted: bool
    origin: Volume | None = None
    """It has the key of this one; None: one of its own."""


def plan_key(tx: Transaction, project: Project, wish: VolumeWish) -> KeyPlan:
    """What has to be had of the KMS before the volume is made. It stays so: no volume changes its key.

    Raises:
        InvalidError: there is no such snapshot, or a copy of it cannot be as is asked, or no node encrypts volumes.
        ConflictError: the snapshot cannot be copied now.
    """
    if wish.snapshot_id:
        _, origin = _source(tx, project, wish.snapshot_id)
        if wish.encrypted not in (None, origin.encrypted):
            text = f"the snapshot is {'' if origin.encrypted else 'not '}encrypted, and so is a copy of it"
            refuse("volume-refused", (FieldError("encrypted", "as-the-snapshot", text),), resolution="Leave it out.")
        return KeyPlan(origin.encrypted, origin)
    encrypted = wish.encrypted is not False
    fault = encryption_fault(tx.nodes.select()) if encrypted else None
    how = "Have a node join that encrypts volumes, or do without: swg volumes create --no-encrypted"
    refuse("cannot-be-encrypted", () if fault is None else (fault,), resolution=how)
    return KeyPlan(encrypted)


def create_volume(unit: Unit, project: Project, wish: VolumeWish, key: Sealing | None = None) -> Volume:
    """Make a volume. An empty one lives nowhere before something mounts it; a copy of a snapshot lives where that does.
    `key` is that of `plan_key`, for one that is to be encrypted.

    Raises:
        InvalidError: name or size are not possible, or there is no such snapshot.
        ConflictError: the project has a volume of this name, the snapshot cannot be copied now, or its node has no room.
        QuotaError: the project or its organization has as many, or as much, as it may.
        UnavailableError: the master key was rotated meanwhile.
    """
    source, origin = _source(unit.tx, project, wish.snapshot_id) if wish.snapshot_id else (None, None)
    size = wish.size_bytes if wish.size_bytes is not None else source.size_bytes if source else 0
    refuse("volume-refused", (*_name_faults(wish), *_size_faults(size, source)))
    if volume_named(unit.tx, project.id, wish.name) is not None:
        fault = FieldError(wish.named_in, "already-exists", "this name is in use in the project")
        raise ConflictError("volume-exists", f"the project has a volume {wish.name} already", errors=(fault,))
    if origin is not None:
        _need_room(unit.tx, origin, size)
    charge(unit, project, {"volumes": 1, "storage": size})
    volume = Volume(
        id=key.key.label.subject if key else unit.new_id("vol"),
        project_id=project.id,
        name=wish.name,
        size_bytes=size,
        node_id=origin.node_id if origin else "",
        source_snapshot_id=source.id if source else "",
        protected=wish.protected,
        encrypted=key is not None,
        sealed_key=keep(unit, key) if key else None,
        created_at=unit.now(),
        created_by=unit.caller.actor,
    )
    volume = unit.tx.volumes.insert(restated(volume))
    tell(unit, volume, "volume.requested", {"size_bytes": str(size)})
    return volume


def protect_volume(unit: Unit, volume: Volume, protected: bool) -> Volume:
    """Say whether it can be deleted."""
    if volume.protected == protected:
        return volume
    tell(unit, volume, "volume.changed", {"protected": str(protected).lower()})
    return unit.tx.volumes.update(replace(volume, protected=protected))


def resize_volume(unit: Unit, project: Project, volume: Volume, size_bytes: int) -> Volume:
    """Make it larger, also while it is in use; the guest grows its file system by itself.

    Raises:
        InvalidError: it would be smaller, or larger than any can be.
        ConflictError: it is being deleted, or moved, or its node has no room.
        QuotaError: more than the project or its organization may have.
    """
    _refuse_gone(volume)
    _refuse_moving(volume)
    faults = _size_faults(size_bytes, None)
    if not faults and size_bytes < volume.size_bytes:
        text = f"a volume can only grow, and this one has {volume.size_bytes // MIB} MiB"
        faults = (FieldError("size", "too-small", text),)
    refuse("volume-refused", faults)
    more = size_bytes - volume.size_bytes
    if not more:
        return volume
    if volume.node_id:
        _need_room(unit.tx, volume, more)
    charge(unit, project, {"storage": more})
    tell(unit, volume, "volume.resizing", {"size_bytes": str(size_bytes)})
    return unit.tx.volumes.update(replace(volume, size_bytes=size_bytes))


def delete_volume(unit: Unit, volume: Volume) -> Volume | None:
    """Destroy it; None where there was nothing of it on any node, so that it is gone already. The key of an encrypted one is
    destroyed at once, so that it is of no use to anybody from then on, whether its node can be reached or not; and copies on
    other nodes go, for nothing of it is to become the volume again.

    Raises:
        ConflictError: it is protected, an app mounts it, it has snapshots or backups, or something is done to it.
    """
    if volume.deleting:
        return volume
    if volume.protected:
        how = f"Take that back first: swg volumes update {volume.name} --no-protect"
        raise ConflictError("volume-protected", f"the volume {volume.name} is protected", resolution=how)
    apps = sorted(app.name for app in users(unit.tx, volume))
    if apps or volume.instance_id:
        raise ConflictError(
            "volume-in-use",
            f"the volume {volume.name} is mounted by {', '.join(apps) or volume.instance_id}",
            resolution="Detach it first, and wait until the old release is gone: swg volumes detach",
        )
    backups = unit.tx.backups.select(eq("volume_id", volume.id))
    if any(backup.state not in (BackupState.FAILED, BackupState.DELETING) for backup in backups):
        raise ConflictError(
            "volume-has-backups",
            f"the volume {volume.name} has backups, which can be reached only as its",
            resolution="Delete them first: swg volumes backups rm",
        )
    if not volume.lost:
        refuse_busy(volume)
        if snapshots_of(unit.tx, volume):
            raise ConflictError(
                "volume-has-snapshots",
                f"the volume {volume.name} has snapshots, which would go with it",
                resolution="Delete them first: swg volumes snapshots rm",
            )
    if volume.lost or not volume.node_id:
        forget(unit, volume)
        return None
    tell(unit, volume, "volume.deleting")
    for replica in replicas_of(unit.tx, volume.id):
        drop_replica(unit, replica)
    return unit.tx.volumes.update(restated(replace(destroy_key(unit, volume), deleting=True)))


def take_snapshot(unit: Unit, volume: Volume, description: str = "", *, freeze: bool = False) -> Snapshot:
    """Keep what it holds now.

    Raises:
        InvalidError: the description is too long.
        ConflictError: nothing was ever on it, or something is done to it.
        QuotaError: it has as many snapshots as it may, or with what it takes now the project or its organization would have
            more than it may.
    """
    if len(description) > MAX_DESCRIPTION or "\0" in description:
        text = f"at most {MAX_DESCRIPTION} characters, and no NUL"
        refuse("snapshot-refused", (FieldError("description", "too-large", text),))
    refuse_unmade(volume)
    refuse_busy(volume)
    if len(snapshots_of(unit.tx, volume)) >= MAX_SNAPSHOTS:
        raise QuotaError(
            "too-many-snapshots", f"a volume has at most {MAX_SNAPSHOTS} snapshots", resolution="Delete some."
        )
    takes = volume.observed.used_bytes
    charge(unit, project_of(unit.tx, volume.project_id), {"storage": takes})
    snapshot = unit.tx.snapshots.insert(
        Snapshot(
            id=unit.new_id("snap"),
            volume_id=volume.id,
            project_id=volume.project_id,
            description=description,
            size_bytes=volume.size_bytes,
            used_bytes=takes,
            frozen=freeze,
            created_at=unit.now(),
            created_by=unit.caller.actor,
        )
    )
    unit.tx.volumes.update(restated(replace(volume, snapshot_id=snapshot.id)))
    tell(unit, volume, "volume.snapshot.requested", {"snapshot": snapshot.id})
    return snapshot


def find_snapshot(tx: Transaction, volume: Volume, id_: str) -> Snapshot:
    """A snapshot of this volume; raises `NotFoundError`."""
    snapshot = tx.snapshots.get(id_)
    if snapshot is None or snapshot.volume_id != volume.id:
        raise missing("snapshot", id_)
    return snapshot


def delete_snapshot(unit: Unit, volume: Volume, snapshot: Snapshot) -> None:
    """Destroy a snapshot.

    Raises:
        ConflictError: a volume began as a copy of it, or the volume is being put back to it, or moved.
    """
    if snapshot.state is SnapshotState.DELETING:
        return
    clones = sorted(each.name for each in _copies(unit.tx, snapshot))
    if clones:
        raise ConflictError(
            "snapshot-has-clones",
            f"{', '.join(clones)} began as a copy of the snapshot and needs it",
            resolution="Delete those volumes first.",
        )
    _refuse_moving(volume)
    if snapshot.id in (volume.restore_snapshot_id, volume.snapshot_id):
        raise ConflictError("volume-busy", f"the volume {volume.name} is {volume.state.value}", resolution="Wait.")
    tell(unit, volume, "volume.snapshot.deleting", {"snapshot": snapshot.id})
    if snapshot.state is SnapshotState.ERROR:
        unit.tx.snapshots.delete(snapshot.id)
    else:
        unit.tx.snapshots.update(replace(snapshot, state=SnapshotState.DELETING))


def restore_volume(unit: Unit, volume: Volume, snapshot: Snapshot) -> Volume:
    """Put it back to one of its snapshots. What was written since is gone; until it is done nothing that mounts it begins.

    Raises:
        ConflictError: something has the volume, or is done to it, or the snapshot is not there.
    """
    refuse_unmade(volume)
    refuse_busy(volume)
    _refuse_unavailable(snapshot)
    if volume.instance_id:
        raise ConflictError(
            "volume-held",
            f"the volume {volume.name} is in use by {volume.instance_id}",
            resolution="Stop its app first (swg apps stop), or restore to a new volume (--to NAME).",
        )
    wished = replace(volume, restore_snapshot_id=snapshot.id, restores=volume.restores + 1)
    tell(unit, volume, "volume.restoring", {"snapshot": snapshot.id})
    return unit.tx.volumes.update(restated(wished))


def _source(tx: Transaction, project: Project, snapshot_id: str) -> tuple[Snapshot, Volume]:
    snapshot = tx.snapshots.get(snapshot_id)
    volume = tx.volumes.get(snapshot.volume_id) if snapshot else None
    if snapshot is None or volume is None or snapshot.project_id != project.id:
        fault = FieldError("snapshot", "no-such-snapshot", "the project has no such snapshot")
        refuse("no-such-snapshot", (fault,), resolution="“swg volumes snapshots ls NAME” lists those of a volume.")
        raise AssertionError("refused above")
    _refuse_unavailable(snapshot)
    _refuse_gone(volume)
    _refuse_moving(volume)
    return snapshot, volume


def _copies(tx: Transaction, snapshot: Snapshot) -> list[Volume]:
    volumes = tx.volumes.select(eq("project_id", snapshot.project_id))
    return [volume for volume in volumes if volume.source_snapshot_id == snapshot.id]


def _name_faults(wish: VolumeWish) -> tuple[FieldError, ...]:
    if NAME.fullmatch(wish.name):
        return ()
    text = "a-z, 0-9, - and _, beginning with a letter, at most 63 characters"
    return (FieldError(wish.named_in, "bad-name", text),)


def _size_faults(size: int, source: Snapshot | None) -> tuple[FieldError, ...]:
    if not MIN_BYTES <= size <= MAX_BYTES:
        return (FieldError("size", "out-of-range", f"between {MIN_BYTES // MIB}m and {MAX_BYTES >> 40}tb"),)
    if size % MIB:
        return (FieldError("size", "out-of-range", "a whole number of MiB"),)
    if source is not None and size < source.size_bytes:
        return (FieldError("size", "too-small", f"the snapshot has {source.size_bytes // MIB} MiB"),)
    return ()


def _need_room(tx: Transaction, volume: Volume, more: int) -> None:
    node = tx.nodes.get(volume.node_id)
    used = node_usage(tx, volume.node_id).get(volume.node_id, NOTHING)
    free = max(room_on(node, used).disk_bytes, 0) if node else 0
    if node is None or more > free:
        where = f"{node.name} has room for {free // MIB} MiB" if node else "its node is gone"
        raise ConflictError(
            "no-room", f"{more // MIB} MiB more are asked for, and {where}", resolution="Ask for less, or free some."
        )


def _refuse_gone(volume: Volume) -> None:
    if volume.deleting:
        raise ConflictError("volume-deleting", f"the volume {volume.name} is being deleted")
    if volume.lost:
        raise ConflictError(
            "volume-lost", f"the volume {volume.name} is lost: {volume.observed.reason}", resolution="Delete it."
        )


def refuse_busy(volume: Volume) -> None:
    """Raise `ConflictError` for a volume to which something is done that nothing else may happen beside."""
    _refuse_gone(volume)
    _refuse_moving(volume)
    if volume.busy:
        raise ConflictError(
            "volume-busy", f"the volume {volume.name} is {volume.state.value}", resolution="Wait until that is done."
        )


def _refuse_moving(volume: Volume) -> None:
    if volume.moving:
        raise ConflictError(
            "volume-busy",
            f"the volume {volume.name} is on its way to another node",
            resolution="Wait until it is there, or give that up: swg volumes move --cancel",
        )


def refuse_unmade(volume: Volume) -> None:
    """Raise `ConflictError` for a volume on which nothing ever was, or is any more."""
    _refuse_gone(volume)
    if volume.observed.presence is not Presence.PRESENT:
        raise ConflictError(
            "volume-not-made",
            f"the volume {volume.name} is on no node yet, so there is nothing on it",
            resolution="Have an app mount it first.",
        )


def _refuse_unavailable(snapshot: Snapshot) -> None:
    if snapshot.state is not SnapshotState.AVAILABLE:
        raise ConflictError("snapshot-not-available", f"the snapshot {snapshot.id} is {snapshot.state.value}")
