"""The nodes loop: listens for silence, and draws the conclusions.

Every server listens, by looking at when nodes were heard last by any of them; the one that holds the lease judges. So who
takes over knows already who fell silent.

A node that is down gets a new epoch in the same transaction in which its instances are judged lost, so nothing that it says
of them later counts; then the rollout loop fills their slots elsewhere. The judgement is made on what was seen before, and
stands only if the node was not heard in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from shellwego.control.loops.lease import Leases, lease_id, run_leased
from shellwego.control.nodeadmin import lose_instances, wake_waiting
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import ShellWeGoError
from shellwego.core.liveness import (
    DEFAULT_TERMS,
    STEADY_S,
    Hearing,
    Terms,
    come_up,
    gone_down,
    judge,
    listen,
    steadied,
    steady_at,
)
from shellwego.core.nodes import Node, NodeHealth
from shellwego.core.peers import unreached
from shellwego.core.volumeleases import over
from shellwego.ports.store import Transaction
from shellwego.wire import subjects

LOOP = "nodes"
LOOK_EVERY_S = 0.5
WAYS_EVERY_S = 2.0
"""Whether nodes have ways to each other is looked at so often."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Listening:
    """What this server heard of each node since it began to listen."""

    control: Control
    judging: bool = False
    """It is the one who judges now, and so looks by itself."""
    hearings: dict[str, Hearing] = field(default_factory=dict)
    _looked_at: float | None = None

    async def run(self) -> None:
        """Listen while others judge, until cancelled."""
        while True:
            if not self.judging:
                with suppress(ShellWeGoError):  # a look that failed is one that did not take place
                    await self.look()
            await self.control.clock.sleep(LOOK_EVERY_S)

    async def look(self) -> tuple[Sequence[Node], float]:
        """Look at every node once; returns them, and the store's time."""
        nodes, judged, today = await self.control.read(lambda tx: (tx.nodes.select(), _judged(tx), tx.now()))
        now = self.control.clock.monotonic()
        elapsed = None if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        self.hearings = {
            node.id: listen(self.hearings.get(node.id), node, elapsed, judging=self.judging, storing=judged)
            for node in nodes
        }
        return nodes, today


def _judged(tx: Transaction) -> bool:
    """Whether somebody judges, and so has written lately; also where nobody ever did, since no lease was ever asked for."""
    lease = tx.leases.get(lease_id(LOOP))
    return lease is None or lease.until > tx.now()


@dataclass(slots=True)
class NodesLoop:
    """Judges nodes by what was heard of them."""

    control: Control
    listening: Listening
    terms: Terms = DEFAULT_TERMS
    _ways_due: float = 0.0

    async def run(self) -> None:
        """Judge until cancelled."""
        await self.listening.look()  # what was before it judges
        self.listening.judging = True
        try:
            while True:
                await self.look()
                await self.control.clock.sleep(LOOK_EVERY_S)
        finally:
            self.listening.judging = False

    async def look(self) -> None:
        """Look at every node once."""
        nodes, today = await self.listening.look()
        now, hearings = self.control.clock.monotonic(), self.listening.hearings
        for node in nodes:
            health = judge(node, hearings[node.id], self.terms)
            if health is not node.health:
                await self._conclude(node, health)
            elif (due := steady_at(node)) is not None and today >= due:
                await self.control.commit(partial(settle, seen=node))
            elif _leases_end(node, hearings[node.id]):
                await self.control.commit(partial(note_leases_over, seen=node))
        if now >= self._ways_due:
            self._ways_due = now + WAYS_EVERY_S
            await self._tell_unreached(nodes)

    async def _tell_unreached(self, nodes: Sequence[Node]) -> None:
        """Say of each node why others have no way to it, when that begins, changes or ends."""
        faults = unreached(nodes)
        for node in nodes:
            fault = faults.get(node.id, "")
            if fault != node.unreached and await self.control.commit(partial(note_way, node_id=node.id, fault=fault)):
                _log.warning("node.unreached" if fault else "node.reached", node=node.name, reason=fault)

    async def _conclude(self, seen: Node, health: NodeHealth) -> None:
        await self.control.commit(lambda unit: conclude(unit, seen, health))


def conclude(unit: Unit, seen: Node, health: NodeHealth) -> None:
    """Store the judgement, unless the node was heard since it was `seen`."""
    node = unit.tx.nodes.get(seen.id)
    if node is None or (node.last_heard_at, node.health) != (seen.last_heard_at, seen.health):
        return
    severity = {NodeHealth.READY: "info", NodeHealth.SUSPECT: "warning", NodeHealth.DOWN: "error"}[health]
    unit.emit(f"node.{health.value}", node.id, severity=severity, data={"name": node.name})
    match health:
        case NodeHealth.DOWN:
            _go_down(unit, node)
        case NodeHealth.SUSPECT:
            unit.tx.nodes.update(replace(node, health=health))
        case NodeHealth.READY:
            unit.tx.nodes.update(come_up(node, unit.now()))


def _leases_end(node: Node, hearing: Hearing) -> bool:
    """Whether that is news. Nobody's clock is in this: the silence was listened to, however long it was before."""
    return node.health is NodeHealth.DOWN and not node.leases_over and over(hearing.silence_s)


def note_leases_over(unit: Unit, seen: Node) -> None:
    """Keep that no lease of a volume is in force on a node, unless it was heard since it was `seen`."""
    node = unit.tx.nodes.get(seen.id)
    if node is None or (node.last_heard_at, node.epoch, node.health) != (seen.last_heard_at, seen.epoch, seen.health):
        return
    unit.emit("node.leases_over", node.id, data={"name": node.name})
    unit.tx.nodes.update(replace(node, leases_over_epoch=node.epoch))
    unit.hint(subjects.REPLICAS)


def _go_down(unit: Unit, node: Node) -> None:
    down = unit.tx.nodes.update(gone_down(node, unit.now()))
    if node.flapping_since is None and down.flapping_since is not None:
        data = {"name": node.name, "downs": str(len(down.downs)), "steady_after_s": f"{STEADY_S:g}"}
        unit.emit("node.flapping", node.id, severity="warning", data=data)
    lose_instances(unit, node, f"node {node.name} is down")


def settle(unit: Unit, seen: Node) -> None:
    """A node that flapped is steady, unless it fell silent since it was `seen`."""
    node = unit.tx.nodes.get(seen.id)
    due = steady_at(node) if node else None
    if node is None or due is None or unit.now() < due:
        return
    unit.emit("node.steady", node.id, data={"name": node.name})
    unit.tx.nodes.update(steadied(node))
    wake_waiting(unit)


def note_way(unit: Unit, node_id: str, fault: str) -> bool:
    """Keep with a node why no other one has a way to it; False where that is known. One that is down is not told of."""
    node = unit.tx.nodes.get(node_id)
    if node is None or node.unreached == fault:
        return False
    told = bool(fault) or node.health is not NodeHealth.DOWN
    if told:
        type_, severity = ("node.unreached", "warning") if fault else ("node.reached", "info")
        unit.emit(type_, node.id, severity=severity, data={"name": node.name, "reason": fault})
    unit.tx.nodes.update(replace(node, unreached=fault))
    return told


async def run(control: Control, *, holder: str | Leases = "", terms: Terms = DEFAULT_TERMS) -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    listening = Listening(control)
    async with asyncio.TaskGroup() as both:
        both.create_task(listening.run())
        judging = run_leased(control, LOOP, holder, lambda fenced: NodesLoop(fenced, listening, terms).run)
        both.create_task(judging)
