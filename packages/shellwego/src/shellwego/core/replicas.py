"""Replicas: copies of volumes on other nodes, kept up to date by sending the difference between two snapshots of the
volume.

Theory. A replica is brought up in rounds. For each round the volume's node takes a *marker*, a snapshot that no user
sees, named by replica and round. The replica's node fetches the difference from the last marker that both have, checks
the whole against the sender's sum, and only then keeps the new marker under its name. Once that is reported, both sides
delete the marker before. So a replica always holds the volume as it was at one moment, and a round that breaks off
leaves the state before it.

One round is wanted at a time (`round`); the next is asked for when the replica holds that one. The age of a replica
counts from when its round was asked for, by the store's clock: the marker was taken after that, so the true age is
never higher.

A standby gets the volume's own snapshots, too. Which of them is laid down with the round (`Along`): those that exist
when the round is asked for, and so are older than its marker. They are sent first, each on top of the one before, and
then the marker; so each transfer is the difference from the youngest snapshot that the copy has. Snapshots that were
deleted are removed from the copy before anything else is sent.

A replica begins again, from nothing, when it has lost the marker that it is based on, when it is another than its
volume's node believes, or when its node kept it once before and was removed with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from shellwego.core.volumes import Presence

MIN_EVERY_S, MAX_EVERY_S = 5, 7 * 86_400
FOREIGN = "foreign-copy"
"""Code by which a node says that what it has under the volume's id was never of this replica."""
BEHIND = 2
"""A replica is behind once it is older than so many of the times that were asked for."""
_MARKER = re.compile(r"(rep_[0-9a-hjkmnp-tv-z]{26})_([1-9][0-9]{0,8})")


class ReplicaPurpose(StrEnum):
    MOVE = "move"
    """The volume is to be on that node, and the copy here to go; or that has happened, and this is what is left."""
    STANDBY = "standby"
    """It may become the volume where the volume's node is lost (`core.promotion`)."""
    LEFT = "left"
    """What was the volume before its standby became that, on a node that was lost: kept as it is until somebody drops it."""


class ReplicaState(StrEnum):
    SEEDING = "seeding"
    """It holds nothing whole yet."""
    FOLLOWING = "following"
    BEHIND = "behind"
    """It is older than `BEHIND` times what was asked for."""
    ERROR = "error"
    """Its node cannot bring it up now, and says why; it goes on trying."""
    DELETING = "deleting"
    LEFT = "left"
    """It is what it was; nothing brings it up."""


R = ReplicaState
REPLICA_MOVES: Mapping[ReplicaState, frozenset[ReplicaState]] = {
    R.SEEDING: frozenset({R.FOLLOWING, R.BEHIND, R.ERROR, R.DELETING}),
    R.FOLLOWING: frozenset({R.SEEDING, R.BEHIND, R.ERROR, R.DELETING}),
    R.BEHIND: frozenset({R.SEEDING, R.FOLLOWING, R.ERROR, R.DELETING}),
    R.ERROR: frozenset({R.SEEDING, R.FOLLOWING, R.BEHIND, R.DELETING}),
    R.DELETING: frozenset(),
    R.LEFT: frozenset({R.DELETING}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedReplica:
    """What its node last said of a replica. `sequence` orders reports within an epoch."""

    presence: Presence = Presence.ABSENT
    round: int = 0
    """The last that it holds whole; 0: none."""
    snapshot_id: str = ""
    """Of the marker of that round."""
    bytes: int = 0
    """What was received in the round under way, or else in the last."""
    digest: str = ""
    """SHA-256 over what it holds, as the sender's and the receiver's agreed, in hexadecimal; empty: not known any more."""
    snapshots: tuple[str, ...] = ()
    """Of the volume, that it has whole."""
    reason: str = ""
    """Why the round that is wanted is not held yet; empty: nothing stands in its way."""
    reason_code: str = ""
    epoch: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Along:
    """Which of the volume's snapshots a replica has, once it holds a round."""

    round: int
    snapshots: tuple[str, ...]
    """The oldest first."""
    kept: tuple[str, ...]
    """Those that it had when the round was asked for; the others are younger than the round before."""
    anew: bool = False
    """It held no round then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    id: str
    volume_id: str
    project_id: str
    node_id: str
    """Where the copy is kept; another than the volume's. Empty: a standby that has no node yet."""
    purpose: ReplicaPurpose
    every_s: int = 0
    """How old it may become; 0: nobody asked for that."""
    size_bytes: int
    """Of the volume: so much room is kept for it."""
    round: int = 1
    """The one that is wanted now."""
    asked_at: float
    """When that was asked for."""
    taken_at: float | None = None
    """When the round that it holds was asked for: it is of then, or later; None: it holds none."""
    along: Along | None = None
    """Of a standby; None: no snapshot was asked for yet."""
    wished_node_id: str = ""
    """Of a standby: where it is to be; empty: wherever there is room."""
    automatic: bool = True
    """Of a standby: it becomes the volume by itself, once that is safe."""
    dropping: bool = False
    """It is to go."""
    state: ReplicaState = ReplicaState.SEEDING
    observed: ObservedReplica = ObservedReplica()
    created_at: float
    created_by: str
    version: int = 1

    @property
    def up(self) -> bool:
        """It holds the round that is wanted."""
        return self.observed.round >= self.round


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOrder:
    """A copy of another node's volume, for the node that keeps it. One that is not named is left alone, as volumes are."""

    replica_id: str
    volume_id: str
    size_bytes: int
    round: int
    chain: tuple[str, ...] = ()
    """The volume's snapshots that come along, the oldest first."""
    coming: tuple[str, ...] = ()
    """Those of them that come on top of a marker, if the copy has one: the others it has from the rounds before."""
    gone: tuple[str, ...] = ()
    """Those that it has, or may have, and that the volume has no more."""
    anew: bool = False
    """It held nothing when the round was asked for: what is there of rounds before is of another time on this node, and may
    not be built upon, since nobody knows which of the snapshots beside it are the older ones."""
    present: bool = True
    """False: destroy it, and say when it is gone."""


def marker(replica_id: str, round_: int) -> str:
    """The id of the snapshot that a round is of, on either node."""
    return f"{replica_id}_{round_}"


def marked(snapshot_id: str) -> tuple[str, int] | None:
    """Replica and round that a snapshot is of; None: it is no marker."""
    found = _MARKER.fullmatch(snapshot_id)
    return None if found is None else (found[1], int(found[2]))


def state_of(replica: Replica, now: float) -> ReplicaState:
    """What state follows from everything else that is known of a replica."""
    if replica.dropping:
        return ReplicaState.DELETING
    if replica.purpose is ReplicaPurpose.LEFT:
        return ReplicaState.LEFT
    if replica.every_s and replica.taken_at is not None and now - replica.taken_at > BEHIND * replica.every_s:
        return ReplicaState.BEHIND
    if replica.observed.reason and not replica.up:
        return ReplicaState.ERROR
    return ReplicaState.SEEDING if replica.taken_at is None else ReplicaState.FOLLOWING


def restated(replica: Replica, now: float) -> Replica:
    """The replica in the state that follows from the rest of it."""
    return replace(replica, state=state_of(replica, now))


def seen(replica: Replica, observed: ObservedReplica, now: float) -> Replica:
    """The row after its node was heard. A sum that is not known there any more still holds for the same round."""
    same = observed.round == replica.observed.round
    observed = replace(observed, digest=observed.digest or (replica.observed.digest if same else ""))
    taken_at = replica.taken_at if observed.round else None
    if observed.round >= replica.round and not replica.up:
        taken_at = replica.asked_at
    return restated(replace(replica, observed=observed, taken_at=taken_at), now)


def next_at(replica: Replica) -> float | None:
    """When the next round is due; None: the one that is wanted is not held yet, or nobody asked for more."""
    if replica.dropping or not replica.every_s or not replica.up:
        return None
    return replica.asked_at + replica.every_s


def asked(replica: Replica, now: float) -> Replica:
    """The replica with another round wanted."""
    return restated(replace(replica, round=replica.round + 1, asked_at=now), now)


def placed(replica: Replica, node_id: str, now: float) -> Replica:
    """The replica on this node, or on none yet (empty), where it holds nothing."""
    moved = replace(replica, node_id=node_id, observed=ObservedReplica(), taken_at=None, along=None)
    return asked(moved, now)


def accompanied(replica: Replica, snapshots: Sequence[str]) -> Replica:
    """The replica whose round was asked for just now, with what comes along: the volume's snapshots, the oldest first."""
    there = set(replica.observed.snapshots)
    kept = tuple(each for each in snapshots if each in there)
    held = replica.observed.round > 0
    return replace(replica, along=Along(round=replica.round, snapshots=tuple(snapshots), kept=kept, anew=not held))


def following(replica: Replica, snapshots: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What a standby's node is told of snapshots, as `ReplicaOrder` has it: `chain`, `coming`, `gone`; `snapshots` are those
    that the volume has now. A round that a server of the version before asked for brings none."""
    along = replica.along
    planned = along.snapshots if along is not None else ()
    chain = tuple(each for each in planned if each in snapshots)
    brings = along is not None and along.round == replica.round
    coming = tuple(each for each in chain if along is not None and brings and each not in along.kept)
    known = dict.fromkeys((*planned, *replica.observed.snapshots))
    return chain, coming, tuple(each for each in known if each not in snapshots)


def outlived(replica: Replica, snapshots: Collection[str]) -> tuple[str, ...]:
    """What the node of a move's copy has beside snapshots of the volume, and the volume has no more. A node that was
    removed while it made a copy, and joined anew, has the beginning of that one, without a marker: it is built upon, but
    not what was deleted since. Where it has none of those that the volume has, nobody knows what it has: nothing of it goes.
    """
    had = replica.observed.snapshots
    return tuple(each for each in had if each not in snapshots) if any(each in snapshots for each in had) else ()
