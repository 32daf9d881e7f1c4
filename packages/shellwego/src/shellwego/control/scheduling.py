"""What may be placed on a node: an operator's word, beside what is judged of its health."""

from __future__ import annotations

from dataclasses import replace

from shellwego.control.unit import Unit
from shellwego.core.instances import Phase
from shellwego.core.nodes import Node, Scheduling
from shellwego.ports.store import eq
from shellwego.wire import subjects


def cordon(unit: Unit, node: Node) -> Node:
    """Place nothing new on the node; what is there stays. One that is not open stays as it is."""
    if node.scheduling is not Scheduling.OPEN:
        return node
    unit.emit("node.cordoned", node.id, data={"name": node.name})
    return unit.tx.nodes.update(replace(node, scheduling=Scheduling.CORDONED))


def uncordon(unit: Unit, node: Node) -> Node:
    """Let the node have VMs again; what waited for room is looked at anew."""
    if node.scheduling is Scheduling.OPEN:
        return node
    unit.emit("node.uncordoned", node.id, data={"name": node.name})
    for instance in unit.tx.instances.select(eq("phase", Phase.PENDING.value)):
        unit.hint(subjects.app(instance.app_id))
    return unit.tx.nodes.update(replace(node, scheduling=Scheduling.OPEN))
