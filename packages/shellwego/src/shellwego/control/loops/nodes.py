"""The nodes loop: listens for silence, and draws the conclusions.

A node that is down gets a new epoch in the same transaction in which its instances are judged lost, so nothing that it says
of them later counts; then the rollout loop fills their slots elsewhere. The judgement is made on what was seen before, and
stands only if the node was not heard in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shellwego.control.changes import apply
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.unit import Control, Unit
from shellwego.core.changes import Lose
from shellwego.core.liveness import DEFAULT_TERMS, Hearing, Terms, judge, listen
from shellwego.core.nodes import Node, NodeHealth
from shellwego.ports.store import eq, within
from shellwego.wire import subjects

LOOK_EVERY_S = 0.5


@dataclass(slots=True)
class NodesLoop:
    """What this control plane heard of each node since it began to listen."""

    control: Control
    terms: Terms = DEFAULT_TERMS
    _hearings: dict[str, Hearing] = field(default_factory=dict)
    _looked_at: float | None = None

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            await self.look()
            await self.control.clock.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look at every node once."""
        nodes = await self.control.read(lambda tx: tx.nodes.select())
        now = self.control.clock.monotonic()
        elapsed = None if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        self._hearings = {node.id: listen(self._hearings.get(node.id), node, elapsed) for node in nodes}
        for node in nodes:
            health = judge(node, self._hearings[node.id], self.terms)
            if health is not node.health:
                await self._conclude(node, health)

    async def _conclude(self, seen: Node, health: NodeHealth) -> None:
        await self.control.commit(lambda unit: conclude(unit, seen, health))


def conclude(unit: Unit, seen: Node, health: NodeHealth) -> None:
    """Store the judgement, unless the node was heard since it was `seen`."""
    node = unit.tx.nodes.get(seen.id)
    if node is None or (node.last_heard_at, node.health) != (seen.last_heard_at, seen.health):
        return
    severity = {NodeHealth.READY: "info", NodeHealth.SUSPECT: "warning", NodeHealth.DOWN: "error"}[health]
    unit.emit(f"node.{health.value}", node.id, severity=severity, data={"name": node.name})
    if health is NodeHealth.DOWN:
        unit.tx.nodes.update(replace(node, health=health, epoch=node.epoch + 1))
        _lose_instances(unit, node)
    else:
        unit.tx.nodes.update(replace(node, health=health))


def _lose_instances(unit: Unit, node: Node) -> None:
    """What ran there is lost; each app is looked at again."""
    instances = unit.tx.instances.select(eq("node_id", node.id), within("phase", LIVE_PHASES))
    for app_id in {instance.app_id for instance in instances}:
        app = unit.tx.apps.get(app_id)
        if app is not None:
            lost = [i for i in instances if i.app_id == app_id]
            changes = [Lose(instance_id=i.id, reason=f"node {node.name} is down") for i in lost]
            apply(unit, app, changes)
        unit.hint(subjects.app(app_id))
    unit.hint(subjects.assignments(node.id))


async def run(control: Control, *, holder: str | Leases = "", terms: Terms = DEFAULT_TERMS) -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "nodes", holder, lambda fenced: lambda: NodesLoop(fenced, terms).run())
