"""What holds at each commit where instances are placed, and where they have to leave their nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from shellwego.control.facts import UNFINISHED
from shellwego.control.instances import LIVE_PHASES
from shellwego.core.apps import wanted_counts
from shellwego.core.instances import SERVING, Desired, Eviction, Instance, OwnerKind
from shellwego.core.moves import RETURN_S
from shellwego.core.nodes import Node, NodeHealth, Scheduling
from shellwego.ports.store import Transaction, eq, within

if TYPE_CHECKING:
    from tests.sim.watch import Write

Found = Iterator[tuple[str, str]]

S = Scheduling
_SCHEDULES: Mapping[Scheduling, frozenset[Scheduling]] = {
    S.OPEN: frozenset({S.CORDONED, S.DRAINING}),
    S.CORDONED: frozenset({S.OPEN, S.DRAINING}),
    S.DRAINING: frozenset({S.OPEN, S.DRAINED}),
    S.DRAINED: frozenset({S.OPEN}),
}
NEWS = {S.OPEN: "node.uncordoned", S.CORDONED: "node.cordoned", S.DRAINING: "node.draining", S.DRAINED: "node.drained"}
"""The event by which a scheduling state is told."""


def placed(tx: Transaction, old: Instance, new: Instance) -> Found:
    """Only a node that is ready and open gets anything new. Who was stopped for a move that left his volume where it was
    comes back to it."""
    if old.node_id or not new.node_id:
        return
    node = tx.nodes.get(new.node_id)
    may = node is not None and (node.scheduling is Scheduling.OPEN or _comes_back(tx, new))
    if node is None or node.health is not NodeHealth.READY or not may:
        state = f"{node.health} and {node.scheduling}" if node else "not there"
        yield "placed-badly", f"{new.id} came to {new.node_id}, which is {state}"


def _comes_back(tx: Transaction, row: Instance) -> bool:
    release = tx.releases.get(row.release_id)
    mounted = release.config.volumes_of(row.process) if release else ()
    moves = [volume.move for volume in map(tx.volumes.get, mounted) if volume is not None]
    return any(
        move.stops and move.source_node_id == row.node_id and tx.now() - (move.ended_at or tx.now()) < RETURN_S
        for move in moves
        if move is not None
    )


def scheduled(tx: Transaction, old: Node, new: Node) -> Found:
    """A node is drained once nothing is left on it."""
    if new.scheduling not in _SCHEDULES[old.scheduling]:
        yield "declared-transitions", f"{new.name}: {old.scheduling} to {new.scheduling}"
    if new.scheduling is Scheduling.DRAINED:
        yield from abandoned(tx, new)


def abandoned(tx: Transaction, node: Node) -> Found:
    """A node that is drained, or gone, has nothing that lives."""
    left = tx.instances.count(eq("node_id", node.id), within("phase", LIVE_PHASES))
    if left:
        yield "not-empty", f"{node.name} is emptied or removed with {left} instances"


def floors(tx: Transaction, writes: list[Write]) -> Found:
    """Whoever is moved goes once as many serve without it as are wanted; while its app is deployed, the deployment's own
    numbers hold. Where its memory goes on in its place, nothing is lost by that."""
    left = {write.old.memory_of for write in writes if write.table == "instances" and _has_memory(write)}
    deploying = {write.new.app_id for write in writes if write.table == "deployments" and write.new is not None}
    for write in writes:
        if write.table == "instances" and write.old and write.new and _moves(write.old, write.new):
            if write.new.id in left:
                continue
            row = write.new
            serving, wanted = _serving(tx, row), _wanted(tx, row)
            unfinished = tx.deployments.count(eq("app_id", row.app_id), within("state", UNFINISHED))
            if serving < wanted and not unfinished and row.app_id not in deploying:
                yield "below-floor", f"{row.id} leaves its node, and {serving} of {wanted} are left"


def _has_memory(write: Write) -> bool:
    return bool(write.old and write.old.memory_of and write.new and not write.new.memory_of and write.new.sleeps)


def _moves(old: Instance, new: Instance) -> bool:
    leaves = old.desired is Desired.SERVE and new.desired is not Desired.SERVE
    return leaves and old.eviction is Eviction.GENTLE and old.phase in SERVING


def _serving(tx: Transaction, row: Instance) -> int:
    rows = tx.instances.select(eq("app_id", row.app_id))
    return sum(each.owner is OwnerKind.APP and each.process == row.process and each.serving for each in rows)


def _wanted(tx: Transaction, row: Instance) -> int:
    app = tx.apps.get(row.app_id)
    release = tx.releases.get(app.stable_release_id) if app else None
    return wanted_counts(app, release.config).get(row.process, 0) if app and release else 0
