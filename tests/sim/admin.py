"""The platform's operator: cordons, empties, labels and removes nodes, and moves what is on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from shellwego.control import nodeadmin, rebalance, scheduling
from shellwego.control.nodeadmin import NodeWish
from shellwego.control.scheduling import DrainWish
from shellwego.control.targets import NodeTarget, SystemTarget
from shellwego.control.unit import Unit
from shellwego.core.errors import ForbiddenError, ShellWeGoError
from shellwego.core.nodes import Node, Scheduling
from tests.sim.client import Client, Request, Told, answering, told
from tests.sim.story import Event

if TYPE_CHECKING:
    from tests.sim.server import Server
    from tests.sim.world import World

EFFECTS = {
    "cordon": "node.cordoned",
    "uncordon": "node.uncordoned",
    "drain": "node.draining",
    "node-label": "node.changed",
    "node-remove": "node.removed",
    "rebalance": "nodes.rebalancing",
    "rebalance-cancel": "nodes.rebalance_cancelled",
}
DEADLINES_S = (None, None, 3.0, 12.0)
LABELS = ("ssd", "hdd", None)


class Operator(Client):
    """Knows of each node whether it may have anything new, and what it is called by."""

    effects = EFFECTS

    def __init__(self, world: World) -> None:
        super().__init__(world, "operator")
        self._open: dict[str, bool] = {}
        """By node: whether it was opened or closed last."""
        self._labels: dict[str, str | None] = {}

    def _meant(self, event: Event, tag: str) -> Request:
        if event.kind in ("rebalance", "rebalance-cancel"):
            return Request(event.kind, "", event.number, tag)
        names = [node.name for node in self._world.nodes]
        closed = [row.name for row in self._world.rows("nodes").values() if row.scheduling is not Scheduling.OPEN]
        chosen = sorted(closed) if event.kind == "uncordon" and closed else names
        if event.kind == "drain" and event.number % 2:
            chosen = self._beds() or names
        return Request(event.kind, chosen[event.number % len(chosen)], event.number, tag)

    def _beds(self) -> list[str]:
        """Nodes on which somebody sleeps, with a memory that can move."""
        nodes = self._world.rows("nodes")
        asleep = {row.node_id for row in self._world.rows("instances").values() if row.sleeps}
        return sorted(nodes[id_].name for id_ in asleep if id_ in nodes)

    async def _do(self, server: Server, request: Request) -> Told:
        access = self._access(server, request, "nodes:write")
        if request.name:
            work = _WORK[request.operation](request.number)
            return told(await access.write_once(NodeTarget(request.name), answering(work)))
        return told(await access.write_once(SystemTarget(), answering(_MOVES[request.operation])))

    def _refused(self, request: Request, error: ShellWeGoError) -> None:
        if isinstance(error, ForbiddenError):
            self._violated("wrong-answer", request, error.code)

    def _done(self, request: Request, answer: Told) -> None:
        node_id = str(answer.get("node", ""))
        match request.operation:
            case "cordon" | "drain" | "uncordon":
                self._open[node_id] = request.operation == "uncordon"
            case "node-label":
                self._labels[node_id] = LABELS[request.number % len(LABELS)]
            case "node-remove":
                self._open.pop(node_id, None)
                self._labels.pop(node_id, None)
                if node_id in self._world.rows("nodes"):
                    self._violated("lost-write", request, f"{node_id} is there again")

    def check(self) -> None:
        """What was acknowledged is stored, now that nothing is under way."""
        if self.busy:
            return
        rows = self._world.rows("nodes")
        for id_, is_open in self._open.items():
            if id_ not in rows or (rows[id_].scheduling is Scheduling.OPEN) is not is_open:
                self._world.watch.violated("lost-write", f"{id_} should be {'open' if is_open else 'closed'}")
        for id_, label in self._labels.items():
            if id_ not in rows or rows[id_].labels.get("disk") != label:
                self._world.watch.violated("lost-write", f"{id_} should have the label {label}")


def _cordon(unit: Unit, node: Node) -> Told:
    scheduling.cordon(unit, node)
    return {"node": node.id, "effect": node.scheduling is Scheduling.OPEN}


def _uncordon(unit: Unit, node: Node) -> Told:
    scheduling.uncordon(unit, node)
    usual = node.scheduling is Scheduling.OPEN and node.flapping_since is None
    return {"node": node.id, "effect": not usual}


def _drain(number: int) -> Callable[[Unit, Node], Told]:
    deadline_s = DEADLINES_S[number % len(DEADLINES_S)]
    force = deadline_s is not None and number % 3 == 0
    wish = DrainWish(deadline_s=deadline_s, force=force, parallel=1 + number % 4)

    def work(unit: Unit, node: Node) -> Told:
        scheduling.drain(unit, node, wish)
        return {"node": node.id, "effect": node.scheduling in (Scheduling.OPEN, Scheduling.CORDONED)}

    return work


def _label(number: int) -> Callable[[Unit, Node], Told]:
    wish = NodeWish(labels={"disk": LABELS[number % len(LABELS)]}, zone=("a", "b", None)[number // 3 % 3])

    def work(unit: Unit, node: Node) -> Told:
        return {"node": node.id, "effect": nodeadmin.update_node(unit, node, wish) is not node}

    return work


def _remove(number: int) -> Callable[[Unit, Node], Told]:
    def work(unit: Unit, node: Node) -> Told:
        nodeadmin.remove_node(unit, node, force=number % 3 == 0)
        return {"node": node.id}

    return work


def _begin(unit: Unit, _: None) -> Told:
    return {"effect": bool(rebalance.begin(unit).moves)}


def _cancel(unit: Unit, _: None) -> Told:
    return {"effect": rebalance.cancel(unit)}


_WORK: Mapping[str, Callable[[int], Callable[[Unit, Node], Told]]] = {
    "cordon": lambda number: _cordon,
    "uncordon": lambda number: _uncordon,
    "drain": _drain,
    "node-label": _label,
    "node-remove": _remove,
}
_MOVES: Mapping[str, Callable[[Unit, None], Told]] = {"rebalance": _begin, "rebalance-cancel": _cancel}
