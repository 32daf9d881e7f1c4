"""Instances that are moved to make nodes more alike: planned, queued, and moved a few at a time.

The queue is a mark on each instance's row, as with nodes that are emptied (`control.drains`), so it outlives whoever works
on it. An instance whose turn comes is looked at again: where nothing else has room for it any more, it stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.drains import release_evicted
from shellwego.control.evictions import evict
from shellwego.control.facts import (
    UNFINISHED,
    evicted_facts,
    node_usage,
    placement_request,
    process_peers,
    releases_of,
)
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.unit import Unit
from shellwego.core.evicted import waits_for
from shellwego.core.fleet import Fleet
from shellwego.core.instances import Eviction, Instance, Phase
from shellwego.core.nodes import MOVES_AT_A_TIME, Scheduling
from shellwego.core.placement import Refusal
from shellwego.core.rebalance import Kind, Move, RebalanceFacts, kind_of, may_move, plan_rebalance
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalance:
    """What would be moved now, and what is under way."""

    moves: tuple[Move, ...] = ()
    queued: int = 0
    moving: int = 0


def rebalance(tx: Transaction) -> Rebalance:
    """What would be moved now: nothing new while some is queued or moves."""
    queued, moving = _queued(tx), _moving(tx)
    if queued or moving:
        return Rebalance(queued=len(queued), moving=len(moving))
    return Rebalance(moves=plan_rebalance(_facts(tx)))


def begin(unit: Unit) -> Rebalance:
    """Queue what would be moved now; returns that."""
    planned = rebalance(unit.tx)
    for move in planned.moves:
        unit.tx.instances.update(replace(move.instance, eviction=Eviction.QUEUED))
    if planned.moves:
        unit.emit("nodes.rebalancing", "system", data={"moves": str(len(planned.moves))})
        unit.hint(subjects.DRAINS)
    return replace(planned, queued=planned.queued + len(planned.moves))


def cancel(unit: Unit) -> bool:
    """Let stay what is queued, and what has not begun to move; returns whether there was anything."""
    queued, evicted = _queued(unit.tx), _evicted(unit.tx)
    for instance in queued:
        unit.tx.instances.update(replace(instance, eviction=Eviction.NONE))
    for node in filter(None, map(unit.tx.nodes.get, sorted({instance.node_id for instance in evicted}))):
        release_evicted(unit, node)
    if queued or evicted:
        unit.emit("nodes.rebalance_cancelled", "system", data={"queued": str(len(queued))})
    return bool(queued or evicted)


def advance(unit: Unit) -> None:
    """Let those move whose turn it is."""
    room = MOVES_AT_A_TIME - len(_moving(unit.tx))
    queued = _queued(unit.tx)
    if room <= 0 or not queued:
        return
    fleet = Fleet(unit.tx.nodes.select(), node_usage(unit.tx))
    releases = releases_of(unit.tx, [instance.release_id for instance in queued])
    for instance in queued[:room]:
        request = placement_request(unit.tx, instance, releases[instance.release_id])
        found = fleet.place(request, fleet.peers(process_peers(unit.tx, instance.app_id).get(instance.process, {})))
        if isinstance(found, Refusal) or found.node_id == instance.node_id:
            unit.tx.instances.update(replace(instance, eviction=Eviction.NONE))
        else:
            fleet.take(found.node_id, request)
            evict(unit, [instance.id], Eviction.GENTLE)


def is_due(tx: Transaction) -> bool:
    """Whether to advance would change anything."""
    return bool(_queued(tx)) and len(_moving(tx)) < MOVES_AT_A_TIME


def _queued(tx: Transaction) -> list[Instance]:
    return tx.instances.select(eq("eviction", Eviction.QUEUED.value), within("phase", LIVE_PHASES))


def _moving(tx: Transaction) -> list[Instance]:
    """Those that cannot go on are not among them: they hold up no other."""
    found = _evicted(tx)
    facts = evicted_facts(tx, found)
    return [instance for instance in found if waits_for(facts, instance, tx.now()).moves]


def _evicted(tx: Transaction) -> list[Instance]:
    """Those on nodes that are emptied are not among them."""
    found = tx.instances.select(eq("eviction", Eviction.GENTLE.value), within("phase", LIVE_PHASES))
    draining = {node.id for node in tx.nodes.select(eq("scheduling", Scheduling.DRAINING.value))}
    return [instance for instance in found if instance.node_id not in draining]


def _facts(tx: Transaction) -> RebalanceFacts:
    busy = {d.app_id for d in tx.deployments.select(within("state", UNFINISHED))}
    healthy = tx.instances.select(eq("phase", Phase.HEALTHY.value))
    movable = [i for i in healthy if may_move(i) and i.app_id not in busy]
    releases = releases_of(tx, [instance.release_id for instance in movable])
    known = tuple(i for i in movable if i.release_id in releases)
    return RebalanceFacts(
        nodes=tuple(tx.nodes.select()),
        usage=node_usage(tx),
        instances=known,
        requests={i.id: placement_request(tx, i, releases[i.release_id]) for i in known},
        peers=_peers(tx),
    )


def _peers(tx: Transaction) -> dict[Kind, dict[str, int]]:
    found: dict[Kind, dict[str, int]] = {}
    for instance in tx.instances.select(within("phase", LIVE_PHASES)):
        if instance.node_id:
            counts = found.setdefault(kind_of(instance), {})
            counts[instance.node_id] = counts.get(instance.node_id, 0) + 1
    return found
