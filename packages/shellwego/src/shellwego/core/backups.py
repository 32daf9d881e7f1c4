"""Backups of volumes: copies elsewhere, of what volumes were; when they are due, and which may go.

Theory. A backup is taken of a snapshot by the agent of the node on which the volume lives, and is in the repository when
its manifest is (`core.chunks`). The row says what is wanted and what became of it. It outlives the volume's data: a volume
whose node is lost is made anew from it, on any node.

What may go is judged by days, weeks and months of UTC: of each of the last so many in which there is a good backup, the
newest one stays. The newest good one of all stays in any case, and so does what somebody asked for by himself. A backup
that is known to be damaged counts as none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from shellwego.core.errors import FieldError
from shellwego.core.sensitive import Sensitive

DAY_S = 86_400
MIN_EVERY_S, MAX_EVERY_S = 3_600, 31 * DAY_S
MAX_KEPT = 366
"""Of each kind."""
MAX_BACKUPS = 1_000
"""Of a volume, without those that failed."""
MAX_FAILED = 20
"""Those of a volume that failed, and are kept to be looked at: so many scheduled ones, and so many that were asked for."""
RETRY_S = 1_800.0
"""After a scheduled one that failed."""
HELD_UP_S = 600.0
"""After so long without progress one that is held up is given up, where it forbids a sweep."""
LATE_S = 300.0
"""So long after a backup was given up or let go its node may still store the manifest. It asks just before whether it is to
(`agent.backups`), and no call to the store takes so long."""


class BackupState(StrEnum):
    PENDING = "pending"
    """Its turn has not come: the volume's node, or the repository, is not ready for it."""
    RUNNING = "running"
    """Its node takes it, or is told to."""
    AVAILABLE = "available"
    FAILED = "failed"
    """There is nothing of it but this row."""
    DELETING = "deleting"


B = BackupState
BACKUP_MOVES: Mapping[BackupState, frozenset[BackupState]] = {
    B.PENDING: frozenset({B.RUNNING, B.FAILED, B.DELETING}),
    B.RUNNING: frozenset({B.AVAILABLE, B.FAILED, B.DELETING}),
    B.AVAILABLE: frozenset({B.DELETING}),
    B.FAILED: frozenset({B.DELETING}),
    B.DELETING: frozenset(),
}
UNDER_WAY = (B.PENDING, B.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    id: str
    volume_id: str
    project_id: str
    description: str = ""
    scheduled: bool = False
    """By the volume's policy, which may let it go again."""
    state: BackupState = BackupState.PENDING
    node_id: str = ""
    """Which node takes it, took it, or verifies it."""
    parent_id: str = ""
    """The backup that it goes on from; empty: it is a full one."""
    freeze: bool = False
    """The guest's file system is to be at rest at the moment that it is of."""
    size_bytes: int
    """Of the volume, when it was taken."""
    done_bytes: int = 0
    """How far it has come, of `size_bytes`."""
    stored_bytes: int = 0
    """What it added to the repository."""
    digest: str = ""
    """SHA-256 of the manifest as it is stored, in hexadecimal."""
    reason: str = ""
    """Why it waits, is held up, or failed."""
    verifying: bool = False
    """It is read back and checked now."""
    verifications: int = 0
    """How often that was asked for."""
    verified_at: float | None = None
    """When it was last found whole, or damaged."""
    damage: str = ""
    """What of it cannot be had any more; empty: nothing that is known."""
    created_at: float
    created_by: str
    ended_at: float | None = None
    version: int = 1

    @property
    def good(self) -> bool:
        """A volume can be made of it, as far as is known."""
        return self.state is BackupState.AVAILABLE and not self.damage


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupPolicy:
    """How often a volume is backed up by itself, and what is kept of that. Its id is the volume's."""

    id: str
    project_id: str
    every_s: int = DAY_S
    daily: int = 7
    weekly: int = 4
    monthly: int = 12
    """Of how many days, weeks and months the newest is kept."""
    next_at: float
    """When the next is due."""
    created_at: float
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Vault:
    """The part of the repository that is one project's: nothing in it can be read, or is shared, by another. Its id is the
    project's."""

    id: str
    key_id: str
    """The data key of all that lies there: without it nothing of it can be read."""
    garbage: bool = False
    """There may be chunks that no backup needs any more."""
    sweeping_until: float = 0.0
    """Until then, by the store's clock, somebody may remove such chunks, and no backup is taken."""
    created_at: float
    version: int = 1


class BackupPhase(StrEnum):
    """What a node says of an order."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOrder:
    """A backup that a node is to take, or to read back and check."""

    backup_id: str
    volume_id: str
    project_id: str
    parent_id: str = ""
    distrust: bool = False
    """What the repository has is read back before it is relied on, since some of it was found damaged."""
    freeze: bool = False
    verify: int = 0
    """The number of that check; 0: take it."""
    digest: str = ""
    """Of the manifest that is checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedBackup:
    """What a node last said of an order."""

    phase: BackupPhase = BackupPhase.RUNNING
    verify: int = 0
    """As in the order."""
    done_bytes: int = 0
    stored_bytes: int = 0
    digest: str = ""
    reason: str = ""
    """Why it is held up, failed, or what is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryPlace:
    """Where the operator has backups lie, and with what they are reached."""

    url: str
    """`file:///directory` or `s3://bucket/prefix`."""
    endpoint: str = ""
    """Of S3, where it is not AWS' own."""
    region: str = ""
    credentials: Mapping[str, Sensitive] = field(default_factory=dict)
    """`access_key_id`, `secret_access_key` and, where there is one, `session_token`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupAccessRequest:
    """What a node asks just before it reads or writes backups: for one that it is to take or check, or that a volume of its
    own is to be made of."""

    node_id: str
    epoch: int
    backup_id: str
    volume_id: str = ""
    """The volume to be made; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupAccess:
    """The answer. It is kept in memory only, on both sides."""

    place: RepositoryPlace
    project_id: str
    key: Sensitive
    """Of the project's vault."""
    digest: str = ""
    """Of the backup's manifest; empty: it has none yet."""


def policy_faults(policy: BackupPolicy) -> tuple[FieldError, ...]:
    """What is wrong with a policy, if anything."""
    faults = []
    if not MIN_EVERY_S <= policy.every_s <= MAX_EVERY_S:
        text = f"between {MIN_EVERY_S // 3600} hour and {MAX_EVERY_S // DAY_S} days"
        faults.append(FieldError("every_s", "out-of-range", text))
    for name, kept in (("daily", policy.daily), ("weekly", policy.weekly), ("monthly", policy.monthly)):
        if not 0 <= kept <= MAX_KEPT:
            faults.append(FieldError(name, "out-of-range", f"between 0 and {MAX_KEPT}"))
    if not faults and not policy.daily + policy.weekly + policy.monthly:
        faults.append(FieldError("daily", "out-of-range", "a policy keeps something"))
    return tuple(faults)


def next_due(policy: BackupPolicy, now: float) -> float:
    """When the next one is due after one that is due by `now`: in the rhythm of before, however many were missed."""
    late = max(now - policy.next_at, 0.0)
    return policy.next_at + (late // policy.every_s + 1) * policy.every_s


def superseded(policy: BackupPolicy, backups: Iterable[Backup]) -> list[Backup]:
    """Those that the policy lets go, the oldest first. Of the backups that nobody asked for by himself: good ones that no
    day, week or month keeps, failed ones older than the last that ended well, and damaged ones once there is a good one
    that is younger."""
    every = sorted(backups, key=lambda each: (each.created_at, each.id))
    good = [each for each in every if each.good]
    kept = _kept(policy, good)
    last = good[-1] if good else None
    return [each for each in every if each.scheduled and each.id not in kept and _is_past(each, last)]


def count_kept(backups: Iterable[Backup]) -> int:
    """How many count towards `MAX_BACKUPS`: a fault that lasts for weeks leaves no policy without room when it is over."""
    return sum(each.state is not BackupState.FAILED for each in backups)


def stale_failures(backups: Iterable[Backup]) -> list[Backup]:
    """Those that failed, beyond the newest of the scheduled ones and the newest of those that were asked for: neither hide
    the others."""
    failed = [each for each in backups if each.state is BackupState.FAILED]
    failed.sort(key=lambda each: (each.created_at, each.id))
    return [
        each
        for scheduled in (True, False)
        for each in [each for each in failed if each.scheduled is scheduled][:-MAX_FAILED]
    ]


def in_turn(backups: Iterable[Backup]) -> list[Backup]:
    """The first of each project, then the second of each, and so on: no project has all of the others wait."""
    before = Counter[str]()
    turns = []
    for backup in backups:
        turns.append((before[backup.project_id], backup))
        before[backup.project_id] += 1
    return [backup for _, backup in sorted(turns, key=lambda each: each[0])]


@dataclass(frozen=True, slots=True)
class Halt:
    """A backup that is taken came no further than this."""

    done_bytes: int
    since: float
    """Since when it is so, by a monotonic clock."""


def halts(known: Mapping[str, Halt], running: Iterable[Backup], now: float) -> dict[str, Halt]:
    """By id, of those that are taken and told why they are held up: where they were then, until they come further. That it
    tells of no trouble for a while is no progress: a node that tries again comes first to where it was."""
    found = {}
    for backup in running:
        halt = known.get(backup.id)
        if halt is not None and backup.done_bytes <= halt.done_bytes:
            found[backup.id] = halt
        elif backup.reason:
            found[backup.id] = Halt(backup.done_bytes, now)
    return found


def is_hopeless(backup: Backup, vault: Vault, halt: Halt, now: float) -> bool:
    """Whether one that is held up is to be given up. What no backup needs is not swept while one is taken; so where there is
    something to sweep, and it is room that is wanted, that would never come."""
    held_up = backup.state is BackupState.RUNNING and backup.reason and backup.done_bytes <= halt.done_bytes
    return bool(held_up) and vault.garbage and now - halt.since >= HELD_UP_S


def going(backup: Backup, now: float) -> Backup:
    """A backup that is to be removed from the repository."""
    ended_at = now if backup.ended_at is None else backup.ended_at
    return replace(backup, state=BackupState.DELETING, verifying=False, ended_at=ended_at)


def may_be_removed(backup: Backup, now: float) -> bool:
    """Whether nothing more can come of a backup that goes: its manifest is there, or no node was ever to take it, or the one
    that was has long stopped."""
    if backup.digest or not backup.node_id:
        return True
    return now >= (backup.created_at if backup.ended_at is None else backup.ended_at) + LATE_S


def _is_past(backup: Backup, last_good: Backup | None) -> bool:
    ended = backup.state in (BackupState.AVAILABLE, BackupState.FAILED) and not backup.verifying
    return ended and last_good is not None and backup.created_at <= last_good.created_at


def _kept(policy: BackupPolicy, good: list[Backup]) -> set[str]:
    """Ids of good backups (the oldest first) that stay."""
    kept = {each.id for each in good[-1:]}
    for period, count in ((_day, policy.daily), (_week, policy.weekly), (_month, policy.monthly)):
        newest = _newest_by(period, good)
        kept.update(newest[which] for which in sorted(newest, reverse=True)[:count])
    return kept


def _newest_by(period: Callable[[float], int], good: list[Backup]) -> dict[int, str]:
    return {period(each.created_at): each.id for each in good}


def _day(moment: float) -> int:
    return int(moment // DAY_S)


def _week(moment: float) -> int:
    """Weeks begin on Mondays; 1 January 1970 was a Thursday."""
    return (_day(moment) + 3) // 7


def _month(moment: float) -> int:
    """Months since the year 0 of the Gregorian calendar, by the days since 1 March of that year: then the leap day is a
    year's last, and a month of such a year begins after (153 m + 2) // 5 days."""
    days = _day(moment) + 719_468
    era, of_era = divmod(days, 146_097)
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    return (era * 400 + year) * 12 + (5 * of_year + 2) // 153
