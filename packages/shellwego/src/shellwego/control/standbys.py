"""Standby replicas of volumes: kept by policy, brought up in rounds, and made the volume where its node is lost.

The replica's row is the policy. Where the node that kept the copy is gone, or the copy has become the volume, the row stays,
without a node, until one is found. See `core.promotion` for when a copy may become the volume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from shellwego.control.config import refuse
from shellwego.control.facts import node_usage
from shellwego.control.holds import tell
from shellwego.control.mounts import users
from shellwego.control.replicareports import ask_round, drop_replica, replicas_of, store_replica
from shellwego.control.scopes import missing, organization_of
from shellwego.control.unit import Unit
from shellwego.control.volumemoves import node_faults
from shellwego.control.volumereports import snapshots_of
from shellwego.control.volumes import refuse_unmade
from shellwego.core.errors import ConflictError, FieldError
from shellwego.core.moves import BEFORE_SWITCH
from shellwego.core.moves import failed as move_failed
from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.placement import NOTHING, room_on
from shellwego.core.promotion import PromotionFacts, lost_s, promotion_fault, standby_of
from shellwego.core.replicas import (
    MAX_EVERY_S,
    MIN_EVERY_S,
    ObservedReplica,
    Replica,
    ReplicaPurpose,
    marker,
    next_at,
    placed,
    restated,
    state_of,
)
from shellwego.core.volumes import ObservedVolume, Presence, Promotion, SnapshotState, Volume, snapshot_failed
from shellwego.core.volumes import restated as volume_restated
from shellwego.ports.store import Transaction
from shellwego.wire import subjects

_WHEN_FREED = "“swg volumes show” tells when; it happens by itself then, unless that was switched off."


def replicate(unit: Unit, volume: Volume, every_s: int, node: Node | None = None, *, automatic: bool = True) -> Replica:
    """Keep a copy of a volume on another node, no older than so many seconds; on this one, or else where there is room. Said
    again it is kept so from now on.

    Raises:
        InvalidError: `every_s` is out of range, or the node cannot keep the copy.
        ConflictError: the volume has nothing on it, or is on that node itself, its node does not enforce leases, or no node
            can keep the copy.
    """
    if not MIN_EVERY_S <= every_s <= MAX_EVERY_S:
        text = f"between {MIN_EVERY_S} s and {MAX_EVERY_S // 86_400} days"
        refuse("replication-refused", (FieldError("every_s", "out-of-range", text),))
    refuse_unmade(volume)
    home = unit.tx.nodes.get(volume.node_id)
    if home is None or not _fences(home):
        raise ConflictError(
            "cannot-be-fenced",
            f"the node of {volume.name} does not end what has a volume when its lease does",
            resolution="Update ShellWeGo there, or move the volume: swg volumes move",
        )
    known = standby_of(replicas_of(unit.tx, volume.id))
    wished = node.id if node is not None else ""
    if wished == home.id:
        raise ConflictError("already-there", f"the volume {volume.name} itself is on the node {home.name}")
    if known is not None and known.node_id and wished in ("", known.node_id):
        kept = replace(known, every_s=every_s, automatic=automatic, wished_node_id=wished or known.wished_node_id)
        stored = store_replica(unit, known, kept)
    else:
        stored = _begin(unit, volume, known, every_s=every_s, wished=wished, automatic=automatic)
    data = {"every_s": str(every_s), "node": stored.node_id, "automatic": str(automatic).lower()}
    tell(unit, volume, "volume.replicated", data)
    _hint(unit, volume, stored)
    return stored


def stop_replicating(unit: Unit, volume: Volume) -> None:
    """Keep no standby copy any more; the one there is goes.

    Raises:
        ConflictError: there is none.
    """
    standby = standby_of(replicas_of(unit.tx, volume.id))
    if standby is None:
        raise ConflictError("no-standby", f"no standby copy is kept of the volume {volume.name}")
    drop_replica(unit, standby)
    tell(unit, volume, "volume.replication_ended", {"node": standby.node_id})
    _hint(unit, volume, standby)


def drop_left(unit: Unit, volume: Volume, copy_id: str) -> None:
    """Destroy a copy that was left behind by a promotion, once its node is there; what only it has is gone then.

    Raises:
        NotFoundError: the volume has no such copy.
        ConflictError: the copy is kept by a policy or a move, and goes with that.
    """
    replica = unit.tx.replicas.get(copy_id)
    if replica is None or replica.volume_id != volume.id:
        raise missing("copy", copy_id)
    if replica.purpose is not ReplicaPurpose.LEFT:
        raise ConflictError(
            "copy-in-use",
            f"the copy {copy_id} of {volume.name} is kept as {replica.purpose.value}",
            resolution="End that instead: swg volumes replicate --off, or swg volumes move --cancel",
        )
    drop_replica(unit, replica)
    tell(unit, volume, "volume.copy_dropped", {"copy": copy_id, "node": replica.node_id})


def promote_volume(unit: Unit, volume: Volume) -> Volume:
    """Let the volume's standby copy become the volume.

    Raises:
        ConflictError: it cannot now, and why (`core.promotion`).
    """
    facts = facts_of(unit.tx, volume)
    fault = promotion_fault(facts)
    if fault is not None:
        how = "swg volumes move brings it to another node." if fault.code == "home-lives" else _WHEN_FREED
        raise ConflictError(fault.code, f"{volume.name} cannot be promoted: {fault.message}", resolution=how)
    return _promoted(unit, facts)


def facts_of(tx: Transaction, volume: Volume) -> PromotionFacts:
    """What it depends on whether the volume's standby may become it."""
    standby = standby_of(replicas_of(tx, volume.id))
    return PromotionFacts(
        volume=volume,
        standby=standby,
        home=tx.nodes.get(volume.node_id) if volume.node_id else None,
        place=tx.nodes.get(standby.node_id) if standby is not None and standby.node_id else None,
        now=tx.now(),
    )


# What a policy does by itself


def advance_standby(unit: Unit, replica_id: str) -> None:
    """Do what is due for a standby, if anything is."""
    replica = unit.tx.replicas.get(replica_id)
    volume = unit.tx.volumes.get(replica.volume_id) if replica else None
    if replica is None or volume is None or replica.purpose is not ReplicaPurpose.STANDBY or replica.dropping:
        return
    facts = facts_of(unit.tx, volume)
    if replica.automatic and promotion_fault(facts) is None:
        _promoted(unit, facts)
    elif not replica.node_id:
        _find_place(unit, volume, replica)
    elif _round_is_due(facts, replica):
        store_replica(unit, replica, ask_round(unit.tx, replica, facts.now))
        _hint(unit, volume, replica)
    else:
        store_replica(unit, replica, restated(replica, facts.now))


def has_news(tx: Transaction, replica: Replica) -> bool:
    """Whether to advance would change anything."""
    volume = tx.volumes.get(replica.volume_id)
    if volume is None or replica.dropping:
        return False
    facts = facts_of(tx, volume)
    if replica.automatic and promotion_fault(facts) is None:
        return True
    if not replica.node_id:
        return _choose(tx, volume, replica) is not None
    return _round_is_due(facts, replica) or state_of(replica, facts.now) is not replica.state


def waits_for(facts: PromotionFacts) -> str:
    """Why the standby of a volume whose node is down is not the volume yet; empty: nothing is in its way, or there is none,
    or the node lives."""
    if facts.standby is None or facts.home is None or facts.home.health is not NodeHealth.DOWN:
        return ""
    fault = promotion_fault(facts)
    return fault.message if fault else ""


def _round_is_due(facts: PromotionFacts, replica: Replica) -> bool:
    due = next_at(replica)
    ready = all(node is not None and node.health is NodeHealth.READY for node in (facts.home, facts.place))
    there = facts.volume.observed.presence is Presence.PRESENT and not facts.volume.arriving
    return due is not None and due <= facts.now and ready and there


def _begin(unit: Unit, volume: Volume, known: Replica | None, *, every_s: int, wished: str, automatic: bool) -> Replica:
    """A standby on a node that can have it, instead of the one that is known."""
    now = unit.now()
    fresh = Replica(
        id=unit.new_id("rep"),
        volume_id=volume.id,
        project_id=volume.project_id,
        node_id="",
        purpose=ReplicaPurpose.STANDBY,
        every_s=every_s,
        size_bytes=volume.size_bytes,
        asked_at=now,
        wished_node_id=wished,
        automatic=automatic,
        created_at=now,
        created_by=unit.caller.actor,
    )
    node = _choose(unit.tx, volume, fresh)
    if node is None:
        _refuse_placeless(unit.tx, volume, wished)
        raise AssertionError("refused above")
    if known is not None:
        drop_replica(unit, known)
    return unit.tx.replicas.insert(ask_round(unit.tx, replace(fresh, node_id=node.id, round=0), now))


def _refuse_placeless(tx: Transaction, volume: Volume, wished: str) -> None:
    """Who may not see nodes is told how many there are of each fault, and no names."""
    node = tx.nodes.get(wished) if wished else None
    if node is not None:
        text = f"the node {node.name} {next(_faults(tx, volume, node), 'is gone')}"
        refuse("replication-refused", (FieldError("node", "does-not-fit", text),), resolution="See: swg nodes ls")
    found = Counter(next(_faults(tx, volume, each), "") for each in tx.nodes.select())
    why = "; ".join(f"{count} {fault}" for fault, count in found.most_common(5))
    raise ConflictError(
        "no-node-fits", f"no node can keep a copy of {volume.name}: {why}", resolution="Have another node join."
    )


def _choose(tx: Transaction, volume: Volume, replica: Replica) -> Node | None:
    """Where a standby is to be: where somebody wished it, else in another zone where there is one, where most room is."""
    home = tx.nodes.get(volume.node_id) if volume.node_id else None
    if home is None:
        return None
    fit = [
        node
        for node in tx.nodes.select()
        if replica.wished_node_id in ("", node.id) and not next(_faults(tx, volume, node), "")
    ]
    usage = node_usage(tx) if fit else {}

    def rank(node: Node) -> tuple[bool, int, str]:
        near = (node.region, node.zone) == (home.region, home.zone)
        return near, -room_on(node, usage.get(node.id, NOTHING)).disk_bytes, node.name

    return min(fit, key=rank, default=None)


def _faults(tx: Transaction, volume: Volume, node: Node) -> Iterator[str]:
    """What speaks against a node."""
    if node.id == volume.node_id:
        yield "has the volume itself"
    yield from node_faults(tx, volume, node)
    if not _fences(node):
        yield "does not end what has a volume when its lease does"


def _fences(node: Node) -> bool:
    keeping = [each for each in node.facts.backends if each.volumes]
    return bool(keeping) and all(each.fences for each in keeping)


def _find_place(unit: Unit, volume: Volume, replica: Replica) -> None:
    node = _choose(unit.tx, volume, replica)
    if node is not None:
        stored = unit.tx.replicas.update(ask_round(unit.tx, replace(replica, node_id=node.id), unit.now()))
        tell(unit, volume, "volume.replicated", {"every_s": str(replica.every_s), "node": node.id})
        _hint(unit, volume, stored)


# Promotion


def _promoted(unit: Unit, facts: PromotionFacts) -> Volume:
    """Volume and standby change places, and the round that the standby holds is what the volume is. Nothing is in the way
    (`promotion_fault`)."""
    volume, standby, home, now = facts.volume, facts.standby, facts.home, facts.now
    if standby is None or home is None:
        raise AssertionError("nothing to promote")
    lost = lost_s(standby, home)
    promotion = Promotion(from_node_id=home.id, to_node_id=standby.node_id, at=now, lost_s=lost, by=unit.caller.actor)
    _leave_behind(unit, volume, home)
    unit.tx.replicas.update(placed(replace(standby, wished_node_id=""), "", now))
    missed = _miss_snapshots(unit, volume, standby, home)
    stored = unit.tx.volumes.update(
        volume_restated(
            replace(
                _without_what_was_under_way(unit, volume, home),
                node_id=standby.node_id,
                instance_id="",
                epoch=volume.epoch + 1,
                promotion=promotion,
                observed=ObservedVolume(),
                restore_snapshot_id=marker(standby.id, standby.observed.round),
                restores=volume.restores + 1,
            )
        )
    )
    data = {"from": home.id, "to": standby.node_id, "lost_s": f"{lost:.0f}", "round": str(standby.observed.round)}
    data |= {"snapshots_missing": str(missed)} if missed else {}
    tell(unit, stored, "volume.promoted", data, severity="warning")
    if unit.caller.actor == "system":
        _audit(unit, stored, f"{home.name} to {standby.node_id}, {lost:.0f} s lost")
    unit.hint(subjects.assignments(home.id))
    _hint(unit, stored, standby)
    for app in users(unit.tx, stored):
        unit.hint(subjects.app(app.id))
    return stored


def _miss_snapshots(unit: Unit, volume: Volume, standby: Replica, home: Node) -> int:
    """Snapshots that the standby has not are only in what was left behind, and told so. Returns how many they are."""
    reason = f"it is on {home.name} alone, in the copy that was left there: the standby copy had not got it yet"
    missed = [
        each
        for each in snapshots_of(unit.tx, volume)
        if each.state is SnapshotState.AVAILABLE and each.id not in standby.observed.snapshots
    ]
    for snapshot in missed:
        unit.tx.snapshots.update(snapshot_failed(snapshot, reason))
    return len(missed)


def _leave_behind(unit: Unit, volume: Volume, home: Node) -> None:
    """What its old node has of it stays there until somebody drops it."""
    now = unit.now()
    left = Replica(
        id=unit.new_id("rep"),
        volume_id=volume.id,
        project_id=volume.project_id,
        node_id=home.id,
        purpose=ReplicaPurpose.LEFT,
        size_bytes=volume.size_bytes,
        asked_at=now,
        automatic=False,
        observed=ObservedReplica(presence=Presence.PRESENT),
        created_at=now,
        created_by=unit.caller.actor,
    )
    unit.tx.replicas.insert(restated(left, now))


def _without_what_was_under_way(unit: Unit, volume: Volume, home: Node) -> Volume:
    """A move, a snapshot or a restore that its old node had begun comes to nothing."""
    reason = f"its node {home.name} was lost meanwhile"
    if volume.move is not None and volume.move.stage in BEFORE_SWITCH:
        moved = unit.tx.replicas.get(volume.move.replica_id)
        if moved is not None:
            drop_replica(unit, moved)
        volume = replace(volume, move=move_failed(volume.move, reason, unit.now()))
        tell(unit, volume, "volume.move.failed", {"reason": reason}, severity="warning")
    for snapshot in snapshots_of(unit.tx, volume):
        if snapshot.id == volume.snapshot_id:
            unit.tx.snapshots.update(snapshot_failed(snapshot, reason))
    if volume.restore_snapshot_id:
        data = {"snapshot": volume.restore_snapshot_id, "reason": reason}
        tell(unit, volume, "volume.restore_failed", data, severity="warning")
    return replace(volume, snapshot_id="")


def _audit(unit: Unit, volume: Volume, detail: str) -> None:
    unit.audit(
        "volumes:promote",
        volume.id,
        organization_id=organization_of(unit.tx, volume.project_id),
        project_id=volume.project_id,
        detail=detail,
    )


def _hint(unit: Unit, volume: Volume, replica: Replica) -> None:
    """Have both nodes look, and the loop."""
    for node_id in {volume.node_id, replica.node_id} - {""}:
        unit.hint(subjects.assignments(node_id))
    unit.hint(subjects.REPLICAS)
