"""Volumes and their snapshots: what is asked, and what is told of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shellwego.api.rest.schemas.common import Body, Name, Pagination, Size, View, when
from shellwego.core.moves import VolumeMove
from shellwego.core.quantities import parse_size
from shellwego.core.replicas import MAX_EVERY_S, MIN_EVERY_S, Replica, state_of
from shellwego.core.volumes import MAX_DESCRIPTION, Promotion, Snapshot, Volume

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
    encrypted: bool | None = None
    """What its node stores of it is ciphertext. Left out: it is so, or a copy is what its snapshot is."""

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


class ReplicationBody(Body):
    """How a standby copy of a volume is kept on another node."""

    every_s: Annotated[int, Field(ge=MIN_EVERY_S, le=MAX_EVERY_S, strict=True, examples=[60])]
    """How old it may become, in seconds: so much may be lost with the volume's node."""
    node: Name | None = None
    """Where, by id or name; left out: where it is, or in another zone if there is one, where there is most room."""
    automatic: bool = True
    """It becomes the volume by itself once the volume's node is lost, and no VM there can have it any more."""


class CopyView(View):
    """A copy of a volume on another node."""

    id: str
    purpose: Literal["move", "standby", "left"]
    """`move`: the volume goes there, or the copy goes since it came from there; `standby`: it may become the volume; `left`:
    it was the volume before a standby became that, and is kept as it was."""
    node: str | None
    """Null: a standby that no node can keep now."""
    state: Literal["seeding", "following", "behind", "error", "deleting", "left"]
    reason: str
    """Why it is not brought up now; empty: it is."""
    every_s: int | None
    """How old it may become; null: nobody asked for that."""
    age_s: float | None
    """How old it is at most; null: it holds nothing whole, or is not brought up."""
    round: int
    """The last that it holds whole."""
    received_bytes: int
    """In the round under way, or else in the last."""
    automatic: bool
    """Of a standby: it becomes the volume by itself."""


class PromotionView(View):
    """The last time that a standby copy became the volume."""

    from_node: str
    to_node: str
    at: datetime
    lost_s: float
    """So many seconds of what was written before the old node was heard last are only in the copy that was left there."""
    by: str


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
    standby: CopyView | None
    """Null: none is kept."""
    instance_id: str | None
    """Which instance has it; null: none."""
    source_snapshot_id: str | None
    source_backup_id: str | None
    protected: bool
    encrypted: bool
    """What its node stores of it, and of its snapshots, is ciphertext."""
    created_at: datetime
    created_by: str
    version: int


class VolumeMoveBody(Body):
    """Where a volume is to be."""

    node: Name
    """By id or name."""


class VolumeMoveView(View):
    """The last move of a volume to another node."""

    stage: Literal["copying", "stopping", "last", "arriving", "clearing", "done", "failed", "cancelled"]
    """`copying`: rounds are sent while the app runs; `stopping`: whoever has the volume stops; `last`: the last round;
    `arriving`: the new node takes it over; `clearing`: the copy left behind goes, and the app comes back."""
    from_node: str
    to_node: str
    reason: str
    """What it waits for, or why it ended otherwise than wished."""
    rounds: int
    """That were asked for."""
    sent_bytes: int
    """In the rounds that have ended."""
    round_bytes: int
    """In the one under way, as far as is known."""
    started_at: datetime
    ended_at: datetime | None
    stopped_s: float | None
    """How long the app was stopped; null: it was not, or is not back yet."""


class VolumeDetail(VolumeView):
    """A volume with who needs it."""

    move: VolumeMoveView | None
    """Null: it never moved."""

    copies: list[CopyView]
    """On other nodes, for whatever purpose."""

    promotion: PromotionView | None
    """Null: there was none."""

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
    on_standby: bool | None
    """The volume's standby copy has it, so it is there where that becomes the volume; null: no such copy is kept."""
    created_at: datetime
    created_by: str


class SnapshotList(View):
    data: list[SnapshotView]
    pagination: Pagination


def copy_view(replica: Replica, *, node: str | None, now: float) -> CopyView:
    return CopyView(
        id=replica.id,
        purpose=replica.purpose.value,
        node=node,
        state=state_of(replica, now).value,
        reason=replica.observed.reason,
        every_s=replica.every_s or None,
        age_s=None if replica.taken_at is None else round(max(now - replica.taken_at, 0.0), 1),
        round=replica.observed.round,
        received_bytes=replica.observed.bytes,
        automatic=replica.automatic,
    )


def promotion_view(promotion: Promotion, *, source: str, target: str) -> PromotionView:
    return PromotionView(
        from_node=source,
        to_node=target,
        at=when(promotion.at),
        lost_s=round(promotion.lost_s, 1),
        by=promotion.by,
    )


def volume_view(volume: Volume, *, node: str | None, standby: CopyView | None, reason: str) -> VolumeView:
    return VolumeView(
        id=volume.id,
        project_id=volume.project_id,
        name=volume.name,
        state=volume.state.value,
        reason=reason,
        size_bytes=volume.size_bytes,
        used_bytes=volume.observed.used_bytes,
        node=node,
        standby=standby,
        instance_id=volume.instance_id or None,
        source_snapshot_id=volume.source_snapshot_id or None,
        source_backup_id=volume.source_backup_id or None,
        protected=volume.protected,
        encrypted=volume.encrypted,
        created_at=when(volume.created_at),
        created_by=volume.created_by,
        version=volume.version,
    )


def move_view(move: VolumeMove, *, source: str, target: str, round_bytes: int) -> VolumeMoveView:
    return VolumeMoveView(
        stage=move.stage.value,
        from_node=source,
        to_node=target,
        reason=move.reason,
        rounds=move.rounds,
        sent_bytes=move.sent_bytes,
        round_bytes=round_bytes,
        started_at=when(move.began_at),
        ended_at=when(move.ended_at) if move.ended_at is not None else None,
        stopped_s=move.stopped_s,
    )


def snapshot_view(snapshot: Snapshot, standby: Replica | None) -> SnapshotView:
    return SnapshotView(
        id=snapshot.id,
        volume_id=snapshot.volume_id,
        description=snapshot.description,
        state=snapshot.state.value,
        reason=snapshot.reason,
        size_bytes=snapshot.size_bytes,
        used_bytes=snapshot.used_bytes,
        freeze=snapshot.frozen,
        on_standby=None if standby is None else snapshot.id in standby.observed.snapshots,
        created_at=when(snapshot.created_at),
        created_by=snapshot.created_by,
    )
