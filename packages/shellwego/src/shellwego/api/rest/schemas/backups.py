"""Backups of volumes, and policies by which they are taken: what is asked, and what is told of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, Pagination, View, when
from shellwego.control.backups import PolicyWish
from shellwego.core.backups import DAY_S, MAX_EVERY_S, MAX_KEPT, MIN_EVERY_S, Backup, BackupPolicy
from shellwego.core.volumes import MAX_DESCRIPTION

Kept = Annotated[int, Field(ge=0, le=MAX_KEPT)]


class BackupCreate(Body):
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] = ""
    freeze: bool = False
    """Have the guest's file system at rest at that moment. Without it the backup is as after a power cut."""


class BackupRestore(Body):
    """Make a new volume of a backup. It lives wherever it is mounted first."""

    to: Annotated[str, Field(min_length=1, max_length=63, examples=["data-again"])]
    """Its name."""


class BackupPolicyBody(Body):
    """How often a volume is backed up by itself, and of how many days, weeks and months the newest backup is kept. The
    newest good one is kept in any case, and what was asked for by hand."""

    every_s: Annotated[int, Field(ge=MIN_EVERY_S, le=MAX_EVERY_S)] = DAY_S
    """Seconds from one to the next."""
    daily: Kept = 7
    weekly: Kept = 4
    monthly: Kept = 12

    @property
    def wish(self) -> PolicyWish:
        return PolicyWish(every_s=self.every_s, daily=self.daily, weekly=self.weekly, monthly=self.monthly)


class BackupView(View):
    id: str
    volume_id: str
    description: str
    state: str
    reason: str
    """Why it waits, is held up, or failed."""
    scheduled: bool
    """By the volume's policy, which lets it go again."""
    freeze: bool
    parent_id: str | None
    """The backup that it goes on from; null: it is a full one."""
    size_bytes: int
    """Of the volume, when it was taken."""
    done_bytes: int
    """How far it has come."""
    stored_bytes: int
    """What it added to the repository, compressed; what was there already was not sent again."""
    digest: str | None
    """SHA-256 of its list of contents, as stored."""
    verifying: bool
    verified_at: datetime | None
    """When it was last read back and checked."""
    damage: str | None
    """What of it cannot be had any more; null: nothing that is known."""
    created_at: datetime
    created_by: str
    ended_at: datetime | None
    version: int


class BackupList(View):
    data: list[BackupView]
    pagination: Pagination


class BackupPolicyView(View):
    volume_id: str
    every_s: int
    daily: int
    weekly: int
    monthly: int
    next_at: datetime
    """When the next one is due."""
    created_at: datetime
    version: int


def backup_view(backup: Backup) -> BackupView:
    return BackupView(
        id=backup.id,
        volume_id=backup.volume_id,
        description=backup.description,
        state=backup.state.value,
        reason=backup.reason,
        scheduled=backup.scheduled,
        freeze=backup.freeze,
        parent_id=backup.parent_id or None,
        size_bytes=backup.size_bytes,
        done_bytes=backup.done_bytes,
        stored_bytes=backup.stored_bytes,
        digest=backup.digest or None,
        verifying=backup.verifying,
        verified_at=None if backup.verified_at is None else when(backup.verified_at),
        damage=backup.damage or None,
        created_at=when(backup.created_at),
        created_by=backup.created_by,
        ended_at=None if backup.ended_at is None else when(backup.ended_at),
        version=backup.version,
    )


def policy_view(policy: BackupPolicy) -> BackupPolicyView:
    return BackupPolicyView(
        volume_id=policy.id,
        every_s=policy.every_s,
        daily=policy.daily,
        weekly=policy.weekly,
        monthly=policy.monthly,
        next_at=when(policy.next_at),
        created_at=when(policy.created_at),
        version=policy.version,
    )
