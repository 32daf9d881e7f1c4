"""What nodes are told of the copies that they keep of other nodes' volumes, and what is believed of what they say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from shellwego.control.holds import tell
from shellwego.control.unit import Unit
from shellwego.core.assignments import NodeReport
from shellwego.core.nodes import Node
from shellwego.core.replicas import (
    FOREIGN,
    ObservedReplica,
    Replica,
    ReplicaOrder,
    ReplicaPurpose,
    ReplicaState,
    accompanied,
    asked,
    following,
    marker,
    outlived,
    placed,
    restated,
    seen,
)
from shellwego.core.volumeleases import TERM_S
from shellwego.core.volumes import MAX_BYTES, MAX_SNAPSHOTS, Presence, SnapshotState
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

_MAX_TEXT = 500
_TOLD = frozenset({ReplicaState.FOLLOWING, ReplicaState.BEHIND, ReplicaState.ERROR})
"""States of standbys whose beginning is an event."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SNAPSHOT = re.compile(r"snap_[0-9a-hjkmnp-tv-z]{26}")


def replicas_of(tx: Transaction, volume_id: str) -> list[Replica]:
    """All copies of a volume, also those that are to go."""
    return tx.replicas.select(eq("volume_id", volume_id))


def replica_orders(tx: Transaction, node_id: str) -> tuple[ReplicaOrder, ...]:
    """All copies that a node keeps, with what is to be done about them."""
    return tuple(
        replica_order(tx, replica)
        for replica in tx.replicas.select(eq("node_id", node_id))
        if replica.dropping or replica.purpose is not ReplicaPurpose.LEFT
    )


def replica_order(tx: Transaction, replica: Replica) -> ReplicaOrder:
    """What is to be done about a copy. With a volume that moves go all of its snapshots: none is taken or deleted then."""
    order = ReplicaOrder(
        replica_id=replica.id,
        volume_id=replica.volume_id,
        size_bytes=replica.size_bytes,
        round=replica.round,
        present=not replica.dropping,
    )
    if replica.dropping:
        return order
    snapshots = _taken(tx, replica.volume_id)
    if replica.purpose is ReplicaPurpose.MOVE:
        return replace(order, chain=snapshots, gone=outlived(replica, snapshots))
    chain, coming, gone = following(replica, snapshots)
    anew = replica.along is not None and replica.along.anew and replica.along.round == replica.round
    return replace(order, chain=chain, coming=coming, gone=gone, anew=anew)


def ask_round(tx: Transaction, standby: Replica, now: float) -> Replica:
    """The standby with another round wanted, and with it all snapshots that the volume has now."""
    return accompanied(asked(standby, now), _taken(tx, standby.volume_id))


def _taken(tx: Transaction, volume_id: str) -> tuple[str, ...]:
    """The snapshots that a volume has, the oldest first."""
    kept = [each for each in tx.snapshots.select(eq("volume_id", volume_id)) if each.state is SnapshotState.AVAILABLE]
    return tuple(each.id for each in sorted(kept, key=lambda each: (each.created_at, each.id)))


def held_rounds(followers: Iterable[Replica]) -> dict[str, int]:
    """By replica: the round that it holds, which the volume's node needs to keep the marker of."""
    return {each.id: each.observed.round for each in followers}


def lease_s(followers: Iterable[Replica]) -> float:
    """The term of the lease by which a volume's node has it; 0: it needs none, for nothing else could become it."""
    return TERM_S if any(each.purpose is ReplicaPurpose.STANDBY for each in followers) else 0.0


def followers(tx: Transaction, volume_id: str) -> list[Replica]:
    """The copies of a volume that are brought up."""
    return [
        each for each in replicas_of(tx, volume_id) if not each.dropping and each.purpose is not ReplicaPurpose.LEFT
    ]


def drop_replica(unit: Unit, replica: Replica) -> None:
    """Have a copy destroyed; its row goes when its node says that it is gone, and at once where no node has it: also where
    that was said already, and the row was kept for a move that is over now; and where what is there is another's."""
    gone = replica.dropping and replica.observed.presence is Presence.GONE
    if not replica.node_id or gone or replica.observed.reason_code == FOREIGN:
        unit.tx.replicas.delete(replica.id)
    elif not replica.dropping:
        unit.tx.replicas.update(restated(replace(replica, dropping=True), unit.now()))
        unit.hint(subjects.assignments(replica.node_id))


def lose_replicas(unit: Unit, node: Node) -> None:
    """What a node kept that is removed is no more."""
    for replica in unit.tx.replicas.select(eq("node_id", node.id)):
        if replica.purpose is ReplicaPurpose.STANDBY and not replica.dropping:
            store_replica(unit, replica, placed(replace(replica, wished_node_id=""), "", unit.now()))
        else:
            _gone(unit, replace(replica, dropping=True), ObservedReplica(presence=Presence.GONE))
    unit.hint(subjects.REPLICAS)


def take_replicas(unit: Unit, node: Node, report: NodeReport) -> None:
    """Take what a node saw of the copies that it keeps; `report` is of its epoch."""
    for replica_id, observed in report.replicas.items():
        replica = unit.tx.replicas.get(replica_id)
        if replica is None or replica.node_id != node.id:
            continue
        before = replica.observed
        if (report.epoch, report.sequence) > (before.epoch, before.sequence):
            now = replace(_bounded(replica, observed), epoch=report.epoch, sequence=report.sequence)
            if replace(now, epoch=before.epoch, sequence=before.sequence) != before:
                _observe(unit, replica, now)
            else:  # noted all the same: else an older one that comes after it would be believed
                unit.tx.replicas.update(replace(replica, observed=now))


def _observe(unit: Unit, replica: Replica, observed: ObservedReplica) -> None:
    if replica.dropping and observed.presence is Presence.GONE:
        _gone(unit, replica, observed)
    else:
        after = store_replica(unit, replica, seen(replica, observed, unit.now()))
        _let_markers_go(unit, replica, after)
    unit.hint(subjects.REPLICAS)


def store_replica(unit: Unit, before: Replica, after: Replica) -> Replica:
    """Store a replica as it is now, where that is another one, and tell where a standby gets behind, or is not any more."""
    if after == before:
        return before
    volume = unit.tx.volumes.get(after.volume_id)
    told = after.state if after.state in _TOLD else None
    if volume is not None and after.purpose is ReplicaPurpose.STANDBY and told is not None and told is not before.state:
        age_s = unit.now() - (after.taken_at if after.taken_at is not None else after.created_at)
        data = {"node": after.node_id, "age_s": f"{age_s:.0f}", "every_s": str(after.every_s)}
        data |= {"reason": after.observed.reason} if after.observed.reason else {}
        severity = "info" if told is ReplicaState.FOLLOWING else "warning"
        tell(unit, volume, f"volume.standby.{told.value}", data, severity=severity)
    return unit.tx.replicas.update(after)


def _gone(unit: Unit, replica: Replica, observed: ObservedReplica) -> None:
    """Nothing is left of a copy. The row of one whose move is under way goes with the end of that."""
    volume = unit.tx.volumes.get(replica.volume_id)
    move = volume.move if volume else None
    if move is not None and move.active and move.replica_id == replica.id:
        unit.tx.replicas.update(restated(replace(replica, observed=observed), unit.now()))
    else:
        unit.tx.replicas.delete(replica.id)


def _let_markers_go(unit: Unit, before: Replica, after: Replica) -> None:
    """The volume's node needs the markers no more of rounds before the one that is held."""
    volume = unit.tx.volumes.get(after.volume_id)
    if volume is not None and volume.node_id and after.observed.round != before.observed.round:
        unit.hint(subjects.assignments(volume.node_id))


def _bounded(replica: Replica, said: ObservedReplica) -> ObservedReplica:
    """The observation within bounds: of a round that was asked for, and of its marker."""
    held = min(max(said.round, 0), replica.round)
    return replace(
        said,
        round=held,
        snapshot_id=marker(replica.id, held) if held else "",
        bytes=min(max(said.bytes, 0), 2 * MAX_BYTES),
        digest=said.digest if _DIGEST.fullmatch(said.digest) else "",
        snapshots=tuple(filter(_SNAPSHOT.fullmatch, said.snapshots))[: 2 * MAX_SNAPSHOTS],
        reason=said.reason[:_MAX_TEXT],
        reason_code=said.reason_code[:64],
    )
