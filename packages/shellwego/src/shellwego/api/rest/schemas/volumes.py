"""Volumes and their snapshots: what is asked, and what is told of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, model_validator

from shellwego.api.rest.schemas.common import Body, Name, Pagination, Size, View, when
from shellwego.core.quantities import parse_size
from shellwego.core.volumes import MAX_DESCRIPTION, Snapshot, Volume

SnapshotId = Annotated[str, Field(min_length=1, max_length=64)]
Destination = Annotated[str, Field(max_length=1024, pattern=r"^/", examples=["/data"])]


class VolumeCreate(Body):
    """A new volume. An empty one gets a node when something mounts it first; a copy of a snapshot lives where that does."""

    name: Annotated[str, Field(min_length=1, max_length=63, examples=["data"])]
    """a-z, 0-9, - and _, beginning with a letter; unique in the project."""
    size: Size | None = None
    """Whole MiB. Left out: as large as the snapshot."""
    snapshot: SnapshotId | None = None
    """What it begins as a copy of; left out: it begins empty."""
    protected: bool = False
    """It cannot be deleted before this is taken back."""

    @model_validator(mode="after")
    def _has_a_size(self) -> VolumeCreate:
        if self.size is None and self.snapshot is None:
            raise ValueError("give size, or the snapshot that it begins as a copy of")
        return self

    @property
    def size_bytes(self) -> int | None:
        return None if self.size is None else parse_size(self.size)


class VolumePatch(Body):
    protected: bool


class ResizeBody(Body):
    """A volume only ever grows, also while it is in use."""

    size: Size


class AttachBody(Body):
    """The app whose process is to have the volume. One process has it, in one instance."""

    app: Name
    destination: Destination
    process: Name = "web"
    read_only: bool = False
    stage: bool = False
    """Roll nothing out; the next deploy takes it along."""


class DetachBody(Body):
    stage: bool = False
    """Roll nothing out; the next deploy takes it along."""


class SnapshotCreate(Body):
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] = ""
    freeze: bool = False
    """Have the guest's file system at rest meanwhile. Without it the snapshot is as after a power cut."""


class RestoreBody(Body):
    """Put a volume back to one of its snapshots, in place or as a new volume."""

    snapshot: SnapshotId
    to: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Name of a new volume; left out: in place, and what was written since is gone."""


class VolumeView(View):
    id: str
    project_id: str
    name: str
    state: str
    reason: str
    """Why it is not as it should be; empty: it is."""
    size_bytes: int
    """As wanted; its node may still be about to make it so large."""
    used_bytes: int
    """What it takes of its node's disk, rounded."""
    node: str | None
    """Where it lives; null: nowhere yet."""
    instance_id: str | None
    """Which instance has it; null: none."""
    source_snapshot_id: str | None
    protected: bool
    created_at: datetime
    created_by: str
    version: int


class VolumeDetail(VolumeView):
    """A volume with who needs it."""

    mounted_by: list[str]
    """Apps that mount it, or have a release that does and may run again by itself."""


class VolumeList(View):
    data: list[VolumeView]
    pagination: Pagination


class VolumeChange(View):
    """A volume whose app was changed; follow the deployment."""

    volume: VolumeDetail
    app_id: str
    deployment_id: str | None
    """Null where it is staged, or the app was never deployed."""


class SnapshotView(View):
    id: str
    volume_id: str
    description: str
    state: str
    reason: str
    size_bytes: int
    """Of the volume, when it was taken."""
    used_bytes: int
    freeze: bool
    created_at: datetime
    created_by: str


class SnapshotList(View):
    data: list[SnapshotView]
    pagination: Pagination


def volume_view(volume: Volume, *, node: str | None, reason: str) -> VolumeView:
    return VolumeView(
        id=volume.id,
        project_id=volume.project_id,
        name=volume.name,
        state=volume.state.value,
        reason=reason,
        size_bytes=volume.size_bytes,
        used_bytes=volume.observed.used_bytes,
        node=node,
        instance_id=volume.instance_id or None,
        source_snapshot_id=volume.source_snapshot_id or None,
        protected=volume.protected,
        created_at=when(volume.created_at),
        created_by=volume.created_by,
        version=volume.version,
    )


def snapshot_view(snapshot: Snapshot) -> SnapshotView:
    return SnapshotView(
        id=snapshot.id,
        volume_id=snapshot.volume_id,
        description=snapshot.description,
        state=snapshot.state.value,
        reason=snapshot.reason,
        size_bytes=snapshot.size_bytes,
        used_bytes=snapshot.used_bytes,
        freeze=snapshot.frozen,
        created_at=when(snapshot.created_at),
        created_by=snapshot.created_by,
    )
